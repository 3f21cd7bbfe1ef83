"""Sharing compiled work among threads, and saying when it is being compiled.

Kernels are plain serial Numba functions that release the GIL (`@njit(cache=True, nogil=True)`); `share` deals the
parts of a job to Python threads. Against Numba's own `parallel=True` this needs no threading layer (so any number of
Python threads may render at once, and a process made by fork() may too), compiles ten times faster, and on a busy
machine does not wait for threads that get no core: the caller takes whatever parts nobody has begun.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_pool: ThreadPoolExecutor | None = None
_size = 0
_lock = threading.Lock()
_announced: set[str] = set()


def _forget() -> None:
    """In a child made by fork() the threads are gone: start new ones when needed."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def count() -> int:
    """How many threads to use: torch's number, so that `torch.set_num_threads` or OMP_NUM_THREADS governs both."""
    return torch.get_num_threads()


def _executor(workers: int) -> ThreadPoolExecutor:
    global _pool, _size
    with _lock:
        if _pool is None or _size < workers:
            _pool, _size = ThreadPoolExecutor(workers, thread_name_prefix="recon4d"), workers
        return _pool


def share(work: Callable[[int], Any], parts: int) -> None:
    """Call `work(i)` once for each i below `parts`, on up to `count()` threads of which the caller is one.

    Parts are begun in order. The first exception of a part is raised, after the others under way have ended.
    """
    helpers = min(count(), parts) - 1
    if helpers <= 0:
        for part in range(parts):
            work(part)
        return
    remaining = iter(range(parts))  # taking the next number is atomic under the GIL

    def take() -> None:
        for part in remaining:
            work(part)

    executor = _executor(helpers)
    futures = [executor.submit(take) for _ in range(helpers)]
    try:
        take()
    finally:
        waiting = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in waiting]
    for error in errors:
        if error is not None:
            raise error


def is_cached(kernel: Any) -> bool:
    """Whether a compiled version of an `@njit(cache=True)` function is in memory or in Numba's cache on disk."""
    try:
        return bool(kernel.signatures) or bool(kernel._cache._cache_file._load_index())
    except Exception:  # private to Numba: if it moves, stay silent rather than fail
        return True


def announce_compile(what: str, seconds: float, kernel: Any = None) -> None:
    """Say once, on stderr, that `what` is being compiled and takes about `seconds`; nothing if `kernel` is cached."""
    if what in _announced:
        return
    _announced.add(what)
    if kernel is None or not is_cached(kernel):
        print(f"recon4d: compiling {what} once (about {seconds:.0f} s) ...", file=sys.stderr, flush=True)
