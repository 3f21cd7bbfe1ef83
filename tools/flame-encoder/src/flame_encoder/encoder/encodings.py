"""Encoded images and their file: `photographs.encode` writes it, `meshes` reads it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d.cameras import Camera
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

    What follows `view` is in newer files alone.

    Attributes:
        head_model: name of the head model.
        names: (N,) image files. image_sizes: (N, 2) width, height, pixels.
        vectors: (N, layout.size). layout, view: what they mean.
        crops: (N, 3) left, top, side of the square that was looked at, pixels.
        found: (N,) bool, whether a face was found; where not, the vectors are what the network makes of the middle.
        refined: (N,) bool, whether `vectors` are the solver's; `raw` (N, layout.size) are the network's in any case.
        focals: (N,) focal lengths that the poses belong to, pixels.
        encoder: names the network (`trained.digest_of`).
        person: whether all images show one person, whose shape and albedo they share.
        identity_sigma: (N, I) how sure each number of `vector.identity_of` is; None where nobody measured the network.
        identity: (N, I) the likeliest shape and albedo, which `identity_sigma` belongs to, where the pictures' colours
            were explained (`people.explained`); None elsewhere. The albedo of `vectors` is what looks like the picture.
        told: (N, K, I + 1) what each image tells of who it shows (`encoder.identity.told`), or None.
        mouths: (N, M, 4) uint8, what the images show of the inside of the mouth (`encoder.mouth`), or None.
    """

    head_model: str
    names: np.ndarray
    image_sizes: np.ndarray
    vectors: np.ndarray
    crops: np.ndarray
    layout: Layout
    view: CropView
    found: np.ndarray
    refined: np.ndarray
    raw: np.ndarray
    focals: np.ndarray
    encoder: str = ""
    person: bool = False
    identity_sigma: np.ndarray | None = None
    identity: np.ndarray | None = None
    told: np.ndarray | None = None
    mouths: np.ndarray | None = None

    def some(self, rows: list[int]) -> "Encoding":
        """Only some images."""
        arrays = ("names", "image_sizes", "vectors", "crops", "found", "refined", "raw", "focals")
        sure = None if self.identity_sigma is None else self.identity_sigma[rows]
        who = None if self.identity is None else self.identity[rows]
        told = None if self.told is None else self.told[rows]
        mouths = None if self.mouths is None else self.mouths[rows]
        own = {name: getattr(self, name)[rows] for name in arrays}
        return replace(self, identity_sigma=sure, identity=who, told=told, mouths=mouths, **own)

    def parts(self, rows: slice | list[int] = slice(None)) -> dict[str, Tensor]:
        """The parts of the vectors of some images, (n, length) each."""
        return self.layout.split(torch.from_numpy(self.vectors[rows]))

    def head_pose(self, head: HeadModel, row: int, focal: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """R (3, 3), t (3,), metres, and K (3, 3) of image `row`; by default with the focal length of `focals`."""
        width, height = (int(x) for x in self.image_sizes[row])
        crops = torch.from_numpy(self.crops[[row]]).float()
        focal = focal or float(self.focals[row])
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        parts = self.parts([row])
        R, t = image_pose(head, self.view, from_6d(parts["global_rot"]), parts["transl"], crops, K)
        return R[0], t[0], K

    def crop_camera(self, head: HeadModel, row: int, size: int) -> tuple[Camera, Tensor, Tensor]:
        """A camera that sees the crop of image `row` as a picture of `size`; the head before it: R (3, 3), t (3,)."""
        R, t, K = self.head_pose(head, row)
        left, top, side = (float(x) for x in self.crops[row])
        scale = size / side
        moved = torch.tensor([[scale, 0, -left * scale], [0, scale, -top * scale], [0, 0, 1]])
        return Camera(moved @ K, torch.eye(4), size, size), R, t

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
            found=self.found,
            refined=self.refined,
            raw=self.raw,
            focals=self.focals,
            encoder=self.encoder,
            person=self.person,
            **({} if self.identity_sigma is None else {"identity_sigma": self.identity_sigma}),
            **({} if self.identity is None else {"identity": self.identity}),
            **({} if self.told is None else {"identity_told": self.told.astype(np.float16)}),
            **({} if self.mouths is None else {"mouths": self.mouths}),
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
    n = len(names)
    own = {
        "found": ((n,), np.ones(n, bool)),
        "refined": ((n,), np.zeros(n, bool)),
        "raw": (vectors.shape, vectors),
        "focals": ((n,), focal_of(view, torch.from_numpy(crops)).numpy()),
        "identity_sigma": ((n, layout.shape + layout.skin), None),
        "identity": ((n, layout.shape + layout.skin), None),
    }
    newer: dict[str, Any] = {}
    for name, (shape, otherwise) in own.items():
        value = arrays.get(name, otherwise)
        fits = value is None or (value.shape == shape and value.dtype.kind in "bf" and np.isfinite(value).all())
        if not fits or (name == "focals" and (np.asarray(value) <= 0).any()):
            raise InputError(f"{path}: its {name} do not fit {n} images; encode the images again")
        newer[name] = value
    for name in ("found", "refined"):
        newer[name] = newer[name].astype(bool)
    mouths = arrays.get("mouths")
    if mouths is not None and (mouths.dtype != np.uint8 or mouths.shape != (n, *mouths.shape[1:2], 4)):
        raise InputError(f"{path}: its mouths do not fit {n} images; encode the images again")
    told = arrays.get("identity_told")
    if told is not None:
        shape = (n, *told.shape[1:2], layout.shape + layout.skin + 1)
        if told.dtype.kind != "f" or told.shape != shape or not np.isfinite(told).all():
            raise InputError(f"{path}: its identity_told do not fit {n} images; encode the images again")
        told = told.astype(np.float32)
    person = bool(arrays["person"].all()) if "person" in arrays else False
    encoder = str(arrays.get("encoder", ""))
    newer |= {"encoder": encoder, "person": person, "told": told, "mouths": mouths}
    return Encoding(str(arrays["head_model"]), names, sizes, vectors, crops, layout, view, **newer)
