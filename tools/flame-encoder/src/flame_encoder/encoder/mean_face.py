"""The average face, and whether a new encoder fits together: the first thing to look at."""

from pathlib import Path
from typing import Any

import numpy as np
import recon4d.head
import torch
from recon4d.files import InputError
from recon4d.head import HeadModel, with_uv
from recon4d.images import write_png
from recon4d.runs import claim_file

from flame_encoder.encoder import rendering
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.vector import IDENTITY_6D, Layout


def draw(
    out: str | Path,
    *,
    head_model: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    backbone: str = "resnet50",
    weights: str = "none",
    force: bool = False,
) -> dict[str, Any]:
    """Write a PNG of the average face as an encoder sees it, and push a random image through a new encoder.

    Args:
        head_model: a FLAME file, the open head when None.
        backbone, weights: see `network.EidolonEncoder`.
        force: replace what is there.

    Returns:
        `image`, `vector`, `parts`: shapes of the encoder's input, output and the output's parts; `rendered`: the file.

    Raises:
        InputError: a head model or backbone that cannot be had; an output that exists without `force`.
    """
    claim_file(out, force=force, inputs=[head_model, landmark_embedding, weights])
    head = with_uv(recon4d.head.load(head_model, landmark_embedding))
    layout, view = Layout(), CropView()
    network = EidolonEncoder(backbone, weights, layout).eval()
    with torch.no_grad():
        picture = picture_of(head, layout, view)
        image = torch.rand(1, 3, view.size, view.size)
        vectors = network(image)
    write_png(Path(out), picture)
    shapes = {name: list(part.shape) for name, part in layout.split(vectors).items()}
    return {"image": list(image.shape), "vector": list(vectors.shape), "parts": shapes, "rendered": str(out)}


def picture_of(head: HeadModel, layout: Layout, view: CropView) -> np.ndarray:
    """The average face, unturned, as an encoder sees it: (S, S, 3) uint8 on white."""
    rest = torch.zeros(1, layout.size)
    parts = layout.split(rest) | {"global_rot": torch.tensor([IDENTITY_6D])}
    image, triangles = rendering.render(rendering.reduced(head), parts, view)
    picture = torch.where(triangles >= 0, image[0], 1.0)
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def show(picture: str | Path) -> None:
    """Show a PNG in a window and wait until that is closed. Raises InputError where there is no screen."""
    try:
        import tkinter

        root = tkinter.Tk()
    except Exception as error:  # ImportError, or TclError where there is no display
        raise InputError(f"--show can't open a window ({error}); look at the PNG instead") from error
    root.title("mean face")
    photo = tkinter.PhotoImage(data=Path(picture).read_bytes(), format="png")
    tkinter.Label(root, image=photo).pack()
    root.mainloop()
