"""Work on many files in several processes or on a Ray cluster, results in order."""

import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from recon4d.files import InputError

T = TypeVar("T")
R = TypeVar("R")
ENGINES = ("local", "ray")
FEW = 12  # files for which starting processes costs more than it saves
SHARD = 256  # files that Ray hands out together; a killed run does those in work again


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], count: int, workers: int, few: int = FEW
) -> Iterator[R | InputError]:
    """`function(item)` for each item, in order; an InputError that it raises is returned in place of its result.

    `function` must be picklable. At most a few items per worker are in flight, whatever the number of items; up to
    `few` of `count` are done in this process.
    """
    if workers < 2 or count <= few:
        yield from (_attempt(function, item) for item in items)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(pool.submit(_attempt, function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def ray_map(
    function: Callable[[list[T]], list[R]], items: Sequence[T], batch: int, workers: int, gpu: bool
) -> Iterator[R]:
    """`function(batch of items)` for all items by Ray Data, the results one by one and in order.

    Items go out in shards of SHARD. Ray runs on `workers` cores of this machine, or on the cluster that the variable
    RAY_ADDRESS names, whose machines must see the same files; with `gpu` each task has a GPU to itself.
    """
    if not items:
        return
    ray = load_ray()
    if not ray.is_initialized():
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # the command has its own
    # Pickles of our own making: a path need not be valid UTF-8, which Arrow's texts must be.
    rows = [{"item": pickle.dumps(item)} for item in items]
    shards = max(-(-len(rows) // SHARD), min(2 * workers, len(rows)))

    def work(columns: dict[str, Any]) -> dict[str, Any]:
        answers = function([pickle.loads(item) for item in columns["item"]])
        return {"answer": [pickle.dumps(answer) for answer in answers]}

    data = ray.data.from_items(rows, override_num_blocks=shards)
    for row in data.map_batches(work, batch_size=batch, num_gpus=1 if gpu else None).iter_rows():
        yield pickle.loads(row["answer"])


def load_ray() -> Any:
    """The package ray. Raises InputError when it is not installed."""
    # Under `uv run` Ray's workers would each make an environment of their own; they share this one.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs Ray; install recon4d[ray]") from error
    return ray


def _attempt(function: Callable[[T], R], item: T) -> R | InputError:
    try:
        return function(item)
    except InputError as error:
        return error


def start_worker() -> None:
    """What a process of a pool begins with: OpenCV on one thread, and an end when its parent is gone."""
    import cv2

    cv2.setNumThreads(1)
    # A worker waiting for work does not notice that its parent was killed: end it then.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> Any:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
