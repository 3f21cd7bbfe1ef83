"""The page of a live run: camera and avatar side by side, what every stage measures, and the switches."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import viser
from recon4d.viewer import serving, window

from gaussian_avatar.live import Page, Seen, Wishes

EVERY = 0.5  # seconds between two looks at the figures
GREY = 24


@contextlib.contextmanager
def opened(host: str, port: int, run: Path, open_browser: bool, log: Callable[[str], None]) -> Iterator[Page]:
    """A page for the block. Raises InputError for an address that cannot be used."""
    title = f"{run.parent.name}: {run.name}"
    with serving(host, port, title, lambda page: log(f"watch at {page}"), log, open_browser) as server:
        server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_layout="fixed", control_width="medium"
        )
        wishes, controls = Wishes(), _Controls(server)
        controls.bind(wishes)
        ended = threading.Event()
        latest: list[Seen] = []
        changed = threading.Condition()

        def show(seen: Seen) -> None:
            with changed:
                latest[:] = [seen]
                changed.notify()

        def send() -> None:
            last = 0.0
            while not ended.is_set():
                with changed:
                    if not latest:
                        changed.wait(0.2)
                    seen = latest.pop() if latest else None
                if seen is None:
                    continue
                for client in server.get_clients().values():
                    client.scene.set_background_image(composed(seen, window(client)[0]), format="jpeg", jpeg_quality=85)
                    client.flush()
                if time.monotonic() - last > EVERY:
                    last = time.monotonic()
                    controls.say(seen.figures, wishes)

        thread = threading.Thread(target=send, name="page", daemon=True)
        thread.start()
        try:
            yield Page(show, wishes)
        finally:
            ended.set()
            thread.join(2)


class _Controls:
    """The page's switches and text."""

    def __init__(self, server: viser.ViserServer):
        self.status = server.gui.add_markdown("waiting for the camera")
        self.learn = server.gui.add_checkbox("Learn", True, hint="Off: the avatar stays as it is, and is driven.")
        self.save = server.gui.add_button("Save")
        self.again = server.gui.add_button("Start again", hint="Forget the avatar, measure the person anew.")
        self.stop = server.gui.add_button("Save and end")

    def bind(self, wishes: Wishes) -> None:
        """Let the switches set what is wished for."""

        @self.learn.on_update
        def _(_: Any) -> None:
            wishes.learn = bool(self.learn.value)

        @self.save.on_click
        def _(_: Any) -> None:
            wishes.save = True

        @self.again.on_click
        def _(_: Any) -> None:
            wishes.again = True

        @self.stop.on_click
        def _(_: Any) -> None:
            wishes.stop = True

    def say(self, figures: dict[str, Any], wishes: Wishes) -> None:
        """Put the figures on the page."""
        self.status.content = table(figures, wishes.learn)


def table(figures: dict[str, Any], learns: bool) -> str:
    """The figures as Markdown."""
    lines = ["| stage | frames/s | ms | dropped | MiB |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in ("camera", "track", "show"):
        stage = figures.get(name)
        if isinstance(stage, dict):
            values = [stage.get(key, "") for key in ("fps", "ms", "dropped", "mib")]
            lines.append(f"| {name} | " + " | ".join(str(value) for value in values) + " |")
    learn, latency = figures.get("learn", {}), figures.get("latency_ms")
    lines += ["", f"{learn.get('images', 0)} images learned, {learn.get('fps', 0):.0f} a second"]
    lines += ["", f"camera to avatar {latency if latency is not None else '-'} ms"]
    return "\n".join(lines if learns else [*lines, "", "**frozen**: it is driven, and learns nothing"])


def composed(seen: Seen, aspect: float) -> np.ndarray:
    """Camera and avatar side by side, (h, w, 3) uint8 of a browser window's proportions."""
    blank = np.full_like(seen.camera, GREY)
    both = np.hstack([seen.camera, blank if seen.avatar is None else seen.avatar])
    height, width = both.shape[:2]
    tall, wide = max(height, round(width / aspect)), max(width, round(height * aspect))
    canvas = np.full((tall, wide, 3), GREY, np.uint8)
    top, left = (tall - height) // 2, (wide - width) // 2
    canvas[top : top + height, left : left + width] = both
    return canvas
