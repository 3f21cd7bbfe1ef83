"""Run a compiled kernel on as many threads as torch uses, and say so once while it compiles."""

import sys
from collections.abc import Callable

import numba.core.event
import numpy as np

from recon4d import numba_setup

_COMPILE_SECONDS = 15  # on a 2-core laptop; an order of magnitude for the message below


def run(kernel: Callable, pieces: int, *args) -> None:
    """Call `kernel(counter, *args)` on several threads until its `pieces` of work are done.

    The kernel takes pieces from the shared counter, without the interpreter lock. Threads are Python's own, not
    Numba's threading layer: `workqueue`, the only layer that is always there, must not be entered from two Python
    threads at once, and a layer's threads would compete with torch's.
    """
    _announce_compilation()
    counter = np.zeros(1, np.int64)
    numba_setup.share(lambda _: kernel(counter, *args), min(numba_setup.count(), pieces))


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
