"""Sharing compiled work among threads, and saying when it is being compiled.

Kernels are plain serial Numba functions that release the GIL (`@njit(cache=True, nogil=True)`); `share` deals the
parts of a job to Python threads. Against Numba's own `parallel=True` this needs no threading layer (so any number of
Python threads may render at once, and a process made by fork() may too), compiles ten times faster, and on a busy
machine does not wait for threads that get no core: the caller takes whatever parts nobody has begun.

Torch's own threads (OpenMP's, on Linux GNU's libgomp) spin for milliseconds after each operation, on the very cores
that the kernels' threads need. libgomp spins for microseconds only once it manages more threads than there are cores.
So the first job that is shared starts a second, idle team: a thread that makes one operation of torch and then sleeps.
That works whoever imported torch first, and needs no environment variable.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

_pool: ThreadPoolExecutor | None = None
_idle_team: threading.Thread | None = None
_size = 0
_lock = threading.Lock()
_announced: set[str] = set()
_own = threading.local()


def _forget() -> None:
    """In a child made by fork() the threads are gone: start new ones when needed."""
    global _pool, _idle_team, _lock
    _pool, _idle_team, _lock = None, None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _make_openmp_sleep() -> None:
    """Start the idle team that makes libgomp's threads sleep soon after their work; once a process."""
    global _idle_team
    with _lock:
        if _idle_team is not None:
            return
        made = threading.Event()

        def hold() -> None:
            torch.zeros(1 << 17).add_(1)  # large enough for torch to share it among threads
            made.set()
            threading.Event().wait()

        _idle_team = threading.Thread(target=hold, name="recon4d-idle-team", daemon=True)
        _idle_team.start()
        made.wait(1)


def count() -> int:
    """How many threads to use: torch's number, so that `torch.set_num_threads` or OMP_NUM_THREADS governs both."""
    return torch.get_num_threads()


def _executor(workers: int) -> ThreadPoolExecutor:
    global _pool, _size
    with _lock:
        if _pool is None or _size < workers:
            _pool, _size = ThreadPoolExecutor(workers, thread_name_prefix="recon4d"), workers
        return _pool


def work_alone() -> None:
    """This thread does what it shares itself from now on: it must not wait for threads of less priority."""
    _own.alone = True


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it what this thread has torch do, or shares, it does alone: for parts of a job that is shared already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share(work: Callable[[int], Any], parts: int) -> None:
    """Call `work(i)` once for each i below `parts`, on up to `count()` threads of which the caller is one.

    Parts are begun in order. The first exception of a part is raised, after the others under way have ended.
    """
    helpers = 0 if getattr(_own, "alone", False) else min(count(), parts) - 1
    if helpers <= 0:
        for part in range(parts):
            work(part)
        return
    if _idle_team is None and sys.platform == "linux":
        _make_openmp_sleep()
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


def run(kernel: Callable[..., Any], pieces: int, *args: Any) -> None:
    """Call `kernel(counter, *args)` on several threads until its `pieces` of work are done.

    The kernel takes pieces from the shared counter, an int64 array of one, without the interpreter lock.
    """
    announce_compile("the CPU rasterizer", 15, kernel)
    counter = np.zeros(1, np.int64)
    share(lambda _: kernel(counter, *args), min(count(), pieces))


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
