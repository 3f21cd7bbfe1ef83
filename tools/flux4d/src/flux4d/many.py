"""The same work on many scenes: in processes of this machine, or on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from recon4d import InputError
from recon4d.parallel import cores, ordered_map, ray_map

T = TypeVar("T")
R = TypeVar("R")


def over(
    function: Callable[[T], R], jobs: Sequence[T], workers: int | None, engine: str = "local", few: int = 1
) -> Iterator[R | InputError]:
    """`function(job)` for each job, in order; an InputError that it raises takes its result's place.

    Args:
        function: picklable. workers: processes; None is one per core. engine: `local` or `ray`. few: so many jobs are
            done in this process.

    Raises InputError where Ray is asked for and not installed.
    """
    count = min(workers or cores(), max(len(jobs), 1))
    if engine == "ray":
        yield from ray_map(partial(_batch, function), list(jobs), 1, count, False)
    else:
        yield from ordered_map(function, jobs, len(jobs), count, few)


def _batch(function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
    answers = []
    for job in jobs:
        try:
            answers.append(function(job))
        except InputError as error:
            answers.append(error)
    return answers
