"""Training samples: a folder of images with landmarks, synthetic ones, or both."""

import json
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recon4d.images
import torch
from recon4d import landmarker
from recon4d.files import InputError, read_json, read_npy_header, write_text
from recon4d.formats.landmarks import N_DENSE, in_pixels, read_landmarks, to_dense, to_ibug
from torch import Tensor

from flame_encoder.encoder import synthetic
from flame_encoder.encoder.crop import CropView, box_of, crops_of, cut_out
from flame_encoder.encoder.synthetic import Scene
from flame_encoder.encoder.vector import Layout
from flame_encoder.frames import check_landmarks, frame_paths, landmark_sizes
from flame_encoder.report import Report, unreported

KEPT = 2**27  # bytes of photographs' crops that are kept in memory
PEOPLE = 2  # counts changes of what a sample of a seed is


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples.

    images: (B, 3, S, S) in [0, 1]. landmarks: (B, 68, 2), pixels of the images. vectors: (B, layout.size), zero where
    unknown. known: (B,) bool, whether the vector is the truth. points: (B, 478, 2) of a landmarker, pixels of the
    images, NaN where it finds no face. people: (B,) int64, a number for each person, -1 where unknown. seen: (B, n)
    what a backbone that stays as it is sees in them (`EidolonEncoder.look`), n = 0 where nobody looked.
    """

    images: Tensor
    landmarks: Tensor
    vectors: Tensor
    known: Tensor
    points: Tensor
    people: Tensor
    seen: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Item(NamedTuple):
    """One sample: see `Batch`. image: (S, S, 3) uint8."""

    image: np.ndarray
    landmarks: np.ndarray
    vector: np.ndarray
    known: bool
    points: np.ndarray
    person: int
    seen: np.ndarray = np.zeros(0, np.float16)


def collate(items: list[Item]) -> Batch:
    """Items of a dataset as one batch."""
    images = torch.from_numpy(np.stack([item.image for item in items])).permute(0, 3, 1, 2).float() / 255
    landmarks, vectors, points = (
        torch.from_numpy(np.stack([item[i] for item in items]).astype(np.float32)) for i in (1, 2, 4)
    )
    known, people = (torch.tensor([item[i] for item in items]) for i in (3, 5))
    seen = torch.from_numpy(np.stack([item.seen for item in items]).astype(np.float32))
    return Batch(images, landmarks, vectors, known, points, people, seen)


class Kept(torch.utils.data.Dataset[Item]):
    """Samples of another dataset with what a backbone that stays as it is sees in them: (N, n) float16."""

    def __init__(self, samples: torch.utils.data.Dataset[Item], seen: np.ndarray):
        self.samples, self.seen = samples, seen

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, index: int) -> Item:
        return self.samples[index]._replace(seen=self.seen[index])


class Synthetic(torch.utils.data.Dataset[Item]):
    """`count` synthetic samples, made when they are first asked for and kept in `cache`, if that is a folder.

    Several processes may share a cache: what one of them has made is there for all. Raises InputError for a cache of
    other samples.
    """

    def __init__(self, scene: Scene, count: int, seed: int, cache: Path | None = None):
        self.scene, self.count, self.seed, self.cache = scene, count, seed, cache
        self.arrays = None if cache is None else _open_cache(scene, count, seed, cache)

    def __getstate__(self) -> dict[str, Any]:
        # A worker's copy opens the files itself: a memory map that is pickled becomes an array of its own.
        return self.__dict__ | {"arrays": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.cache is not None:
            self.arrays = _open_cache(self.scene, self.count, self.seed, self.cache)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        kept = self.arrays
        if kept is None or not kept["ready"][index]:
            sample = synthetic.sample(self.scene, self.seed, index)
            if kept is None:
                return Item(sample.image, sample.landmarks, sample.vector, True, sample.points, index // 2)
            for name in ("image", "landmarks", "vector", "points"):
                kept[name][index] = getattr(sample, name)
            kept["ready"][index] = True
        image, landmarks, vector, points = (kept[name][index] for name in ("image", "landmarks", "vector", "points"))
        return Item(image, landmarks, vector, True, points, index // 2)


def _open_cache(scene: Scene, count: int, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays in `folder`. Raises InputError when they were made for other samples."""
    size = scene.view.size
    made_for = {
        "head_model": scene.head.name,
        "seed": seed,
        "layout": scene.layout.model_dump(),
        "view": scene.view.model_dump(),
        "look": scene.look,
        "people": PEOPLE,
    }
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((count, size, size, 3), np.uint8),
        "landmarks": ((count, 68, 2), np.float32),
        "vector": ((count, scene.layout.size), np.float32),
        "points": ((count, N_DENSE, 2), np.float32),
        "ready": ((count,), np.bool_),
    }
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        _make_cache(folder, shapes, made_for)
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, kind) in shapes.items():
        path = folder / f"{name}.npy"
        try:
            made = read_json(folder / "samples.json")
            with open(path, "rb") as file:
                found, _, dtype = read_npy_header(file, path)
        except (OSError, InputError) as error:
            raise InputError(f"{folder} is not a readable cache of samples ({error}); remove it") from error
        # More samples than asked for do: they are numbered.
        if made != made_for or dtype != kind or found[1:] != shape[1:] or found[0] < count:
            raise InputError(f"{folder} holds samples for other settings; give another data.cache or remove it")
        arrays[name] = np.lib.format.open_memmap(path, "r+")
    return arrays


def _make_cache(folder: Path, shapes: dict[str, tuple[tuple[int, ...], Any]], made_for: dict[str, Any]) -> None:
    """Make an empty cache beside `folder` and move it there as a whole, unless another process did so meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, (shape, kind) in shapes.items():
            np.lib.format.open_memmap(made / f"{name}.npy", "w+", kind, shape)
        write_text(made / "samples.json", json.dumps(made_for))
        made.chmod(0o755)  # mkdtemp makes private folders
        if folder.exists():  # Windows moves nothing onto a folder
            folder.rmdir()
        made.rename(folder)
    except OSError:
        if not (folder / "samples.json").exists():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Folder(torch.utils.data.Dataset[Item]):
    """Images with landmarks, as prep-faces writes them; each is cropped to its face, or to each of them.

    Landmarks made on another image size (said in `landmarks.jsonl` beside their folder) are scaled. Images without
    landmarks are left out. MediaPipe's points are kept as such, too. Without a folder of landmarks the landmarker looks
    at all images. Raises InputError when none is left, or for a file that cannot be read.
    """

    def __init__(
        self, images: Path, landmarks: Path | None, layout: Layout, view: CropView, report: Report = unreported
    ):
        self.layout, self.view = layout, view
        self.kept: dict[int, Item] = {}  # reading a large image takes far longer than a step
        paths = frame_paths(images)
        self.sizes: dict[str, np.ndarray] = {}
        if landmarks is None:
            found = []
            for i, path in enumerate(paths):
                faces = landmarker.find(recon4d.images.read(path))
                found += [(path, face.points[:, :2].astype(np.float64)) for face in faces]
                report(i + 1, "")
        else:
            check_landmarks(landmarks)
            self.sizes = landmark_sizes(landmarks)
            found = [(path, points) for path in paths for points in read_landmarks(landmarks / f"{path.stem}.npy")]
        self.pairs = [(path, points) for path, points in found if np.isfinite(to_ibug(points)).all()]
        if not self.pairs and landmarks is None:
            raise InputError(f"no face is found in any of the {len(paths)} images of {images}; give others")
        if not self.pairs:
            raise InputError(f"{landmarks} has landmarks for none of the {len(paths)} images of {images}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        item = self.kept.get(index)
        if item is None:
            item = self._cut(index)
            if (len(self.kept) + 1) * item.image.nbytes < KEPT:
                self.kept[index] = item
        return item

    def _cut(self, index: int) -> Item:
        path, points = self.pairs[index]
        image = recon4d.images.read(path)
        points = in_pixels(points[None], self.sizes.get(path.stem, image.shape[1::-1]))[0]
        if path.stem in self.sizes:
            points = points * (np.array(image.shape[1::-1]) / self.sizes[path.stem])
        marks = torch.from_numpy(to_ibug(points).astype(np.float32))[None]
        dense = to_dense(points)
        dense = np.full((N_DENSE, 2), np.nan) if dense is None else dense
        crops = crops_of(box_of(marks))
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        seen = cut_out(pixels, crops, self.view.size)[0].round().clamp(0, 255).byte()
        scale = self.view.size / crops[:, None, 2:]
        both = torch.cat([marks, torch.from_numpy(dense.astype(np.float32))[None]], 1)
        there = ((both - crops[:, None, :2]) * scale)[0].numpy()
        unknown = np.zeros(self.layout.size, np.float32)
        return Item(seen.permute(1, 2, 0).numpy(), there[:68], unknown, False, there[68:], -1)
