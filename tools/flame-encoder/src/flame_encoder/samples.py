"""Training samples: a folder of images with landmarks, synthetic ones, or both."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from recon4d.files import InputError, write_text
from torch import Tensor

from flame_encoder import observations, synthetic
from flame_encoder import view as views
from flame_encoder.synthetic import Scene
from flame_encoder.vector import Layout
from flame_encoder.view import View


@dataclass(frozen=True)
class Batch:
    """B samples.

    images: (B, 3, S, S) in [0, 1]. landmarks: (B, 68, 2), pixels of the images. vectors: (B, layout.size), zero where
    unknown. known: (B,) bool, whether the vector is the truth.
    """

    images: Tensor
    landmarks: Tensor
    vectors: Tensor
    known: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in ("images", "landmarks", "vectors", "known")))


Item = tuple[np.ndarray, np.ndarray, np.ndarray, bool]  # image (S, S, 3) uint8, landmarks, vector, known


def collate(items: list[Item]) -> Batch:
    images = torch.from_numpy(np.stack([item[0] for item in items])).permute(0, 3, 1, 2).float() / 255
    landmarks, vectors = (torch.from_numpy(np.stack([item[i] for item in items])) for i in (1, 2))
    return Batch(images, landmarks, vectors, torch.tensor([item[3] for item in items]))


class Synthetic(torch.utils.data.Dataset):
    """`count` synthetic samples, made when they are first asked for and kept in `cache`, if that is a folder."""

    def __init__(self, scene: Scene, count: int, seed: int, cache: Path | None = None):
        self.scene, self.count, self.seed = scene, count, seed
        self.arrays: dict[str, np.ndarray] | None = None
        if cache is not None:
            self.arrays = _open_cache(scene, count, seed, cache)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        kept = self.arrays
        if kept is None or not kept["ready"][index]:
            sample = synthetic.sample(self.scene, self.seed, index)
            if kept is None:
                return sample.image, sample.landmarks, sample.vector, True
            for name in ("image", "landmarks", "vector"):
                kept[name][index] = getattr(sample, name)
            kept["ready"][index] = True
        return kept["image"][index], kept["landmarks"][index], kept["vector"][index], True


def _open_cache(scene: Scene, count: int, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Memory-mapped arrays in `folder`. Raises InputError when they were made for other samples."""
    size = scene.view.size
    made_for = {
        "head_model": scene.head.name,
        "seed": seed,
        "layout": asdict(scene.layout),
        "view": asdict(scene.view),
    }
    shapes = {
        "image": ((count, size, size, 3), np.uint8),
        "landmarks": ((count, 68, 2), np.float32),
        "vector": ((count, scene.layout.size), np.float32),
        "ready": ((count,), np.bool_),
    }
    record = folder / "samples.json"
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, (shape, kind) in shapes.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, shape)
        write_text(record, json.dumps(made_for))
    try:
        found = json.loads(record.read_text())
        arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in shapes}
        # More samples than asked for do: they are numbered.
        fits = found == made_for and all(len(arrays[name]) >= count for name in shapes)
    except (ValueError, OSError) as error:
        raise InputError(f"{folder} is not a readable cache of samples ({error}); remove it") from error
    if not fits:
        raise InputError(f"{folder} holds samples for other settings; give another data.cache or remove it")
    return arrays


class Folder(torch.utils.data.Dataset):
    """Images with 68 landmarks, as prep-faces writes them; each is cropped to its face, or to each of them.

    Landmarks made on another image size (said in `landmarks.jsonl` beside their folder) are scaled. Images without
    landmarks are left out. Raises InputError when none is left, or for a file that cannot be read.
    """

    def __init__(self, images: Path, landmarks: Path, layout: Layout, view: View):
        self.layout, self.view = layout, view
        paths = observations.frame_paths(images)
        observations.check_landmarks(landmarks)
        self.sizes = observations.landmark_sizes(landmarks)
        self.pairs = [
            (path, points) for path in paths for points in observations.read_landmarks(landmarks / f"{path.stem}.npy")
        ]
        if not self.pairs:
            raise InputError(f"{landmarks} has landmarks for none of the {len(paths)} images of {images}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        path, points = self.pairs[index]
        image = read_image(path)
        if path.stem in self.sizes:
            points = points * (np.array(image.shape[1::-1]) / self.sizes[path.stem])
        marks = torch.from_numpy(points.astype(np.float32))[None]
        crops = views.crops_of(views.box_of(marks))
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        seen = views.crop(pixels, crops, self.view.size)[0].round().clamp(0, 255).byte()
        scale = self.view.size / crops[:, None, 2:]
        marks = ((marks - crops[:, None, :2]) * scale)[0].numpy()
        return seen.permute(1, 2, 0).numpy(), marks, np.zeros(self.layout.size, np.float32), False


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3). Raises InputError for what is not an image."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise InputError(f"{path} is not a readable image; give a PNG or JPEG file")
    return np.ascontiguousarray(image[..., ::-1])


def image_paths(sources: tuple[Path, ...] | list[Path]) -> list[Path]:
    """Files as they are given, and the images of folders. Raises InputError for what is neither, or an empty folder."""
    paths: list[Path] = []
    for source in sources:
        paths += observations.frame_paths(source) if source.is_dir() else [source]
    names = [path.name for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two images are named {twice}; encode them in two calls")
    return paths
