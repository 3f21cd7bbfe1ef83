"""Numba, set up once for every kernel of the library: threading layer, thread count, compile message.

Used by `recon4d.mesh` and `recon4d.splat`. In a module with kernels:

    from recon4d import numba_setup

    numba_setup.announce_compile("the mesh rasterizer", 20, kernel)  # one line on stderr if `kernel` is not cached yet
    with numba_setup.threads() as count:                             # sets Numba's thread count, locks if it must
        kernel(..., count)

Kernels that take `count` and split their work themselves run without threads in a forked child (see `threads`).
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numba
import torch

_announced: set[str] = set()
_lock = threading.RLock()
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _choose_layer() -> str:
    """Prefer a layer that two Python threads may enter at once: omp, then tbb; `workqueue` is the last resort.

    Where torch is imported first, as here, the omp layer binds to torch's own OpenMP runtime: one pool, not two.
    Its threads spin for some milliseconds before they sleep; on a machine that is busy with other work
    OMP_WAIT_POLICY=PASSIVE or GOMP_SPINCOUNT=10000 (set before Python starts) helps both torch and these kernels.
    """
    if "NUMBA_THREADING_LAYER" in os.environ:
        return numba.config.THREADING_LAYER
    for layer, module in (("omp", "omppool"), ("tbb", "tbbpool")):
        try:
            __import__(f"numba.np.ufunc.{module}")
        except ImportError:
            continue
        numba.config.THREADING_LAYER = layer
        return layer
    numba.config.THREADING_LAYER = "workqueue"
    return "workqueue"


LAYER = _choose_layer()


def is_safe() -> bool:
    """Whether two Python threads may run parallel kernels at the same time."""
    return LAYER in ("omp", "tbb", "threadsafe", "safe")


@contextmanager
def threads(limit: int | None = None) -> Iterator[int]:
    """Set Numba's thread count to torch's for the calling thread, and yield it; hold a lock on unsafe layers.

    One number (`torch.set_num_threads`, OMP_NUM_THREADS) so governs both, and a data-loader worker, which torch
    limits to one thread, stays at one. In a child made by fork() the count is 1 and callers must run their serial
    kernel: GNU OpenMP ends a process that opens a parallel region there.
    """
    if _forked:
        yield 1
        return
    count = max(1, min(limit or torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    with nullcontext() if is_safe() else _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(count)
        try:
            yield count
        finally:
            numba.set_num_threads(before)


def is_forked() -> bool:
    """Whether this process was made by fork(), so that no parallel region may be opened."""
    return _forked


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
