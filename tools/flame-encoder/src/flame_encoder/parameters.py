"""Encoded images as a file: `flame-encoder encode` writes it, `mesh` reads it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d.files import InputError, read_npz, write_npz
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder import encoder as encoders
from flame_encoder import vector, view
from flame_encoder.encoder import Encoder
from flame_encoder.samples import read_image
from flame_encoder.vector import Layout
from flame_encoder.view import View

FORMAT = "eidolon-vectors-1"


@dataclass(frozen=True)
class Parameters:
    """N encoded images.

    Attributes:
        head_model: name of the head model.
        names: (N,) image files. image_sizes: (N, 2) width, height, pixels.
        vectors: (N, layout.size). layout, view: what they mean.
        crops: (N, 3) left, top, side of the square that was looked at, pixels.
    """

    head_model: str
    names: np.ndarray
    image_sizes: np.ndarray
    vectors: np.ndarray
    crops: np.ndarray
    layout: Layout
    view: View

    def parts(self, rows: slice | list[int] = slice(None)) -> dict[str, Tensor]:
        return self.layout.split(torch.from_numpy(self.vectors[rows]))

    def head_pose(self, head: HeadModel, row: int, focal: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """R (3, 3), t (3,), metres, and K (3, 3) of image `row`; by default the focal length of the encoder's view."""
        width, height = (int(x) for x in self.image_sizes[row])
        crops = torch.from_numpy(self.crops[[row]]).float()
        focal = focal or view.focal(self.view, crops)[0].item()
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        parts = self.parts([row])
        R, t = view.image_pose(head, self.view, vector.rotation_matrix(parts["global_rot"]), parts["transl"], crops, K)
        return R[0], t[0], K

    def write(self, path: Path) -> None:
        """An npz without pickles; the vector's parts are in it once more by name."""
        lengths = self.layout.lengths
        ends = np.cumsum(list(lengths.values()))
        named = {name: self.vectors[:, end - length : end] for (name, length), end in zip(lengths.items(), ends)}
        write_npz(
            path,
            format=FORMAT,
            head_model=self.head_model,
            names=self.names,
            image_sizes=self.image_sizes,
            vectors=self.vectors,
            crops=self.crops,
            **{f"layout_{key}": value for key, value in asdict(self.layout).items()},
            **{f"view_{key}": value for key, value in asdict(self.view).items()},
            **named,
        )


def read(path: Path) -> Parameters:
    """Raises InputError for a file that is not one of `encode`, or holds vectors that do not fit their layout."""
    arrays = read_npz(path)
    if str(arrays.get("format")) != FORMAT:
        raise InputError(f"{path} is neither a file of flame-encoder encode nor a track")
    try:
        layout = Layout(**{key: int(arrays[f"layout_{key}"]) for key in ("shape", "expression", "detail")})
        seen = View(**{key: float(arrays[f"view_{key}"]) for key in ("fov", "distance", "head_size")})
        seen = View(seen.fov, seen.distance, seen.head_size, int(arrays["view_size"]))
        names, vectors = arrays["names"].astype(str), arrays["vectors"].astype(np.float32)
        sizes, crops = arrays["image_sizes"].astype(int), arrays["crops"].astype(np.float32)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not complete ({error}); encode the images again") from error
    n = len(names)
    if vectors.shape != (n, layout.size) or sizes.shape != (n, 2) or crops.shape != (n, 3):
        raise InputError(f"{path}: vectors of shape {vectors.shape} do not fit {n} images of {layout.size} numbers")
    if not np.isfinite(vectors).all():
        raise InputError(f"{path}: vectors hold NaN or infinite numbers; encode the images again")
    return Parameters(str(arrays["head_model"]), names, sizes, vectors, crops, layout, seen)


def encode(
    encoder: Encoder, paths: list[Path], boxes: np.ndarray, report: Callable[[int], None] | None = None
) -> Parameters:
    """Encode the face in `boxes` (N, 4) of each image file. Raises InputError for a file that is not an image."""
    vectors, crops, sizes = [], [], []
    for i, path in enumerate(paths):
        image = read_image(path)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        parts = encoders.encode(encoder, pixels, torch.from_numpy(boxes[[i]]))
        crops.append(parts.pop("crop"))
        vectors.append(encoder.layout.join(parts))
        sizes.append(image.shape[1::-1])
        if report:
            report(i + 1)
    return Parameters(
        head_model=encoder.head.name,
        names=np.array([path.name for path in paths]),
        image_sizes=np.array(sizes),
        vectors=torch.cat(vectors).numpy(),
        crops=torch.cat(crops).numpy(),
        layout=encoder.layout,
        view=encoder.view,
    )
