"""Encoded images and their file: `photographs.encode` writes it, `meshes` reads it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d.files import InputError, read_npz, write_npz
from recon4d.head import HeadModel
from recon4d.rotations import from_6d
from torch import Tensor

from flame_encoder.encoder.crop import CropView, focal_of, image_pose
from flame_encoder.encoder.vector import Layout

FORMAT = "eidolon-vectors-1"


@dataclass(frozen=True, eq=False)
class Encoding:
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
    view: CropView

    def parts(self, rows: slice | list[int] = slice(None)) -> dict[str, Tensor]:
        """The parts of the vectors of some images, (n, length) each."""
        return self.layout.split(torch.from_numpy(self.vectors[rows]))

    def head_pose(self, head: HeadModel, row: int, focal: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """R (3, 3), t (3,), metres, and K (3, 3) of image `row`; by default the focal length of the encoder's view."""
        width, height = (int(x) for x in self.image_sizes[row])
        crops = torch.from_numpy(self.crops[[row]]).float()
        focal = focal or focal_of(self.view, crops)[0].item()
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        parts = self.parts([row])
        R, t = image_pose(head, self.view, from_6d(parts["global_rot"]), parts["transl"], crops, K)
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
            **{f"layout_{key}": value for key, value in self.layout.model_dump().items()},
            **{f"view_{key}": value for key, value in self.view.model_dump().items()},
            **named,
        )


def read(path: Path) -> Encoding:
    """Raises InputError for a file that is not one of `encode`, or holds vectors that do not fit their layout."""
    arrays = read_npz(path)
    if str(arrays.get("format")) != FORMAT:
        raise InputError(f"{path} is neither a file of flame-encoder encode nor a track")
    try:
        layout = Layout(**{key: int(arrays[f"layout_{key}"]) for key in ("shape", "expression", "detail")})
        places = {key: float(arrays[f"view_{key}"]) for key in ("fov", "distance", "head_size")}
        view = CropView(**places, size=int(arrays["view_size"]))
        names, vectors = np.atleast_1d(arrays["names"]).astype(str), arrays["vectors"].astype(np.float32)
        sizes, crops = arrays["image_sizes"].astype(int), arrays["crops"].astype(np.float32)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not complete ({reason}); encode the images again") from error
    n = len(names)
    if vectors.shape != (n, layout.size) or sizes.shape != (n, 2) or crops.shape != (n, 3) or names.ndim != 1:
        raise InputError(f"{path}: vectors of shape {vectors.shape} do not fit {n} images of {layout.size} numbers")
    if not (np.isfinite(vectors).all() and np.isfinite(crops).all()):
        raise InputError(f"{path}: vectors hold NaN or infinite numbers; encode the images again")
    if (sizes < 1).any() or (crops[:, 2] < 1).any():
        raise InputError(f"{path}: images or crops of no size; encode the images again")
    return Encoding(str(arrays["head_model"]), names, sizes, vectors, crops, layout, view)
