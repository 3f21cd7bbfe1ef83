"""Clips streamed from disk: those used last stay in memory, the next one is read while a step is computed."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flux4d.samples import Sample


class Stream:
    """Samples by number. A context: it ends its thread.

    Args:
        make: reads a sample. size: how many are held.
    """

    def __init__(self, make: Callable[[int], Sample], size: int):
        self._make, self._size = make, max(size, 1)
        self._held: OrderedDict[int, Sample] = OrderedDict()
        self._waiting: dict[int, Future[Sample]] = {}
        self._reader = ThreadPoolExecutor(1, "flux4d-reader")

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self._reader.shutdown(cancel_futures=True)

    def __call__(self, number: int) -> Sample:
        """One of them. Raises what reading it raised."""
        if number not in self._held:
            waiting = self._waiting.pop(number, None)
            self._held[number] = self._make(number) if waiting is None else waiting.result()
        self._held.move_to_end(number)
        while len(self._held) > self._size:
            self._held.popitem(last=False)
        return self._held[number]

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begin to read the first of some that is neither held nor being read; one is read ahead at most."""
        for number in numbers:
            if number not in self._held and not self._waiting:
                self._waiting[number] = self._reader.submit(self._make, number)
