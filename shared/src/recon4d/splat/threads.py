"""Run a compiled kernel on as many threads as torch uses, and say so once while it compiles."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba.core.event
import numpy as np
import torch

_COMPILE_SECONDS = 15  # on a 2-core laptop; an order of magnitude for the message below

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _forget_pools() -> None:
    """A forked child has none of the threads, and perhaps a lock that nobody will release."""
    global _pools_lock
    _pools.clear()
    _pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def run(kernel: Callable, pieces: int, *args) -> None:
    """Call `kernel(counter, *args)` here and on helper threads until its `pieces` of work are done.

    The kernel takes pieces from the shared counter, without the interpreter lock. Threads are Python's own, not
    Numba's threading layer: `workqueue`, the only layer that is always there, must not be entered from two Python
    threads at once, and a layer's threads would compete with torch's. `torch.set_num_threads` bounds ours too.
    """
    _announce_compilation()
    threads = min(torch.get_num_threads(), pieces)
    counter = np.zeros(1, np.int64)
    helpers = [_pool().submit(kernel, counter, *args) for _ in range(threads - 1)]
    kernel(counter, *args)
    for helper in helpers:
        if not helper.cancel():  # one that has not begun is not needed: the work is done
            helper.result()


def _pool() -> ThreadPoolExecutor:
    size = torch.get_num_threads() - 1
    with _pools_lock:
        if size not in _pools:
            _pools[size] = ThreadPoolExecutor(size, thread_name_prefix="splat")
        return _pools[size]


class _Announcement(numba.core.event.Listener):
    """Prints one line when Numba really compiles a kernel of this package (a cache hit raises no such event)."""

    def __init__(self):
        self.done = False

    def on_start(self, event):
        module = getattr(getattr(event.data.get("dispatcher"), "py_func", None), "__module__", "")
        if not self.done and module.startswith("recon4d.splat"):
            self.done = True
            print(f"compiling the CPU rasterizer, about {_COMPILE_SECONDS} s, once", file=sys.stderr, flush=True)

    def on_end(self, event):
        pass


_announcement: _Announcement | None = None


def _announce_compilation() -> None:
    global _announcement
    if _announcement is None:
        _announcement = _Announcement()
        numba.core.event.register("numba:compile", _announcement)
