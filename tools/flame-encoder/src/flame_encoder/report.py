"""How work that takes long says how far it is: functions that Python's users may leave away."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Report = Callable[[int, str], None]  # steps that are done, and a text
Progress = Callable[[str, int], AbstractContextManager[Report]]  # title and total; `recon4d.cli.progress_bar` is one
Log = Callable[[str], None]


def unsaid(message: str) -> None:
    """A `log` that says nothing."""


def unreported(done: int, text: str = "") -> None:
    """A `report` that says nothing."""


@contextmanager
def unseen(what: str, total: int) -> Iterator[Report]:
    """A `progress` that shows nothing."""
    yield unreported
