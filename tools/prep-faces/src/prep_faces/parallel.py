"""Work on many files in several processes, results in order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from recon4d import InputError

T = TypeVar("T")
R = TypeVar("R")
FEW = 12  # files for which starting processes costs more than it saves


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], items: Iterable[T], count: int, workers: int) -> Iterator[R | InputError]:
    """`function(item)` for each item, in order; an InputError that it raises is returned in place of its result.

    `function` must be picklable. At most a few items per worker are in flight, whatever the number of items.
    """
    if workers < 2 or count <= FEW:
        yield from (_attempt(function, item) for item in items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(_attempt, function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _attempt(function: Callable[[T], R], item: T) -> R | InputError:
    try:
        return function(item)
    except InputError as error:
        return error


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)
    # A worker waiting for work does not notice that its parent was killed: end it then.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> Any:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
