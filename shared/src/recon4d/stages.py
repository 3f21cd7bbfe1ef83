"""What the stages of a live pipe share: the newest line first, a line passed on, what each stage measures of itself.

A stage reads lines of JSON, one a frame, adds what it found out, and writes them on. None waits for another: what comes
too fast is dropped, the newest is served, and the dropped are counted. When a stage ends, the one before finds that
nobody reads, the one after that nothing comes; each says so in one sentence.
"""

import _thread
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from recon4d.files import InputError

T = TypeVar("T")
NOBODY = "the next command of the pipe has ended, and this one with it"
LONGEST = 16 << 20  # bytes of a line
SPAN = 2.0  # seconds that a stage's figures are of


class Inbox(Generic[T]):
    """Items as they come, read in a thread of their own.

    At most `waiting` of them wait; where one more comes, the oldest is dropped and counted, or, with `patient`, the
    thread waits. The last is never dropped. An exception of the items is raised where they are taken.
    """

    def __init__(self, items: Iterable[T], waiting: int, patient: bool = False):
        self.waiting, self.patient, self.dropped = waiting, patient, 0
        self._queue: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(items,), name="inbox", daemon=True).start()

    def _read(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                with self._changed:
                    while self.patient and len(self._queue) >= self.waiting:
                        self._changed.wait()
                    self._queue.append(item)
                    if len(self._queue) > self.waiting:
                        self._queue.popleft()
                        self.dropped += 1
                    self._changed.notify()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def take(self, seconds: float = 0.0) -> list[T] | None:
        """All that wait, oldest first, after at most so many seconds; None once there will be no more."""
        with self._changed:
            if not self._queue and not self._ended:
                self._changed.wait(seconds)
            items = list(self._queue)
            self._queue.clear()
            self._changed.notify()
            if items or not self._ended:
                return items
        if self._error is not None:
            raise self._error
        return None


def newest(items: Iterable[T], patient: bool = False) -> Iterator[tuple[T, int]]:
    """The newest item again and again, each with how many before it were dropped since the last; see `Inbox`."""
    inbox, before = Inbox(items, 1, patient), 0
    while (taken := inbox.take(0.5)) is not None:  # so that Ctrl-C is seen
        for item in taken:
            dropped = inbox.dropped
            yield item, dropped - before
            before = dropped


def lines_of(file: TextIO) -> Iterator[str]:
    """Lines of a pipe or a file as they come, of which nothing has been read.

    Read without Python's buffer: a thread that waits for a line holds its lock, and a process that ends meanwhile dies
    of that. Raises InputError for a line that does not end.
    """
    try:
        number = file.fileno()
    except (OSError, ValueError, AttributeError):  # text in memory
        yield from file
        return
    left = b""
    while chunk := os.read(number, 1 << 16):
        *whole, left = (left + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if len(left) > LONGEST:
            raise InputError(
                f"a line of more than {LONGEST >> 20} MiB is no line of JSON; see what writes into the pipe"
            )
    if left:
        yield left.decode(errors="replace")


def write_line(out: TextIO, record: dict[str, Any]) -> None:
    """One line of JSON, at once. Raises InputError where nobody reads any more; see `while_read` too."""
    try:
        out.write(json.dumps(record) + "\n")
        out.flush()
    except (BrokenPipeError, ValueError) as error:  # ValueError: it was closed
        with contextlib.suppress(OSError, ValueError):  # so that the interpreter's own flush at the end is quiet
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise InputError(NOBODY) from error


@contextlib.contextmanager
def while_read(out: TextIO) -> Iterator[None]:
    """Ends the block with InputError when nobody reads a pipe any more, also while nothing is written.

    In the main thread only; elsewhere, and where the system cannot tell, the next line that is written finds out.
    """
    if threading.current_thread() is not threading.main_thread() or not _is_pipe(out):
        yield
        return
    over, closed = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if until_closed(out, 0.5):
                if not over.is_set():
                    closed.set()
                    _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch, name="reader", daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if closed.is_set():
            raise InputError(NOBODY) from error
        raise
    finally:
        over.set()


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does, by KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


class Meter:
    """What a stage measures of itself over the last seconds: frames per second, milliseconds for each, dropped ones."""

    def __init__(self, span: float = SPAN):
        self.span = span
        self.times: deque[tuple[float, float]] = deque()
        self.frames = self.dropped = 0

    def add(self, seconds: float, dropped: int = 0) -> None:
        """A frame was done in so many seconds, after so many were dropped."""
        now = time.monotonic()
        self.times.append((now, seconds))
        while self.times and self.times[0][0] < now - self.span:
            self.times.popleft()
        self.frames += 1
        self.dropped += dropped

    def seconds_each(self) -> float:
        """The mean time of a frame; 0 where there was none."""
        return sum(seconds for _, seconds in self.times) / max(len(self.times), 1)

    def figures(self) -> dict[str, float | int]:
        """`fps`, `ms` of a frame, `frames` and `dropped` so far, `mib` of memory."""
        spent = [seconds for _, seconds in self.times]
        age = self.times[-1][0] - self.times[0][0] if len(self.times) > 1 else 0.0
        return {
            "fps": round((len(spent) - 1) / age, 1) if age else 0.0,
            "ms": round(1e3 * sum(spent) / max(len(spent), 1), 1),
            "frames": self.frames,
            "dropped": self.dropped,
            "mib": round(resident_mib()),
        }


def resident_mib() -> float:
    """Memory of this process, MiB; where the system does not say, the most it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, IndexError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)


def until_closed(out: TextIO, seconds: float, said: Path | None = None) -> bool:
    """Wait until the reader of a pipe has closed it, at most so long; whether it has. At once where it is no pipe.

    `said` is a file by which a later stage says that it has read enough; programs between (tee) close only after us.
    """
    import select

    if not _is_pipe(out):
        return False
    poll = select.poll()
    poll.register(out.fileno(), 0)  # errors are told in any case
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if any(event & select.POLLERR for _, event in poll.poll(min(1e3 * left, 100))):
            return True
        if said is not None and said.exists():
            break
    return False


def _is_pipe(out: TextIO) -> bool:
    """Whether it is a pipe of which the system tells when its reader closes it."""
    import select
    import stat

    try:
        return hasattr(select, "poll") and stat.S_ISFIFO(os.fstat(out.fileno()).st_mode)
    except (OSError, ValueError):  # closed here, or no file at all
        return False


def stand_back(by: int = 10) -> None:
    """Lower the priority of this thread and of those it starts from now on, by so much niceness; on Linux only.

    For work that has no deadline beside work that has one: elsewhere a priority is of the whole process.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox that forbids it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + by)
