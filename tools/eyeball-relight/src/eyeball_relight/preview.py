"""A page that shows an asset in the browser under a light that follows the mouse. One file, no network."""

import base64
from importlib import resources
from pathlib import Path

from recon4d.files import write_text

from eyeball_relight import gltf

PLACE = "@GLB@"


def write(path: Path, glb: Path) -> None:
    """Write the page with the GLB inside. Raises InputError for a file that is not a GLB."""
    gltf.read_document(glb)
    page = resources.files("eyeball_relight").joinpath("preview.html").read_text()
    write_text(path, page.replace(PLACE, base64.b64encode(glb.read_bytes()).decode()))
