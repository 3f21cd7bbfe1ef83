"""Features of the frames of a data set: one vector per frame, and a spatial map where it is asked for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import images

from feat_extract import backbones
from feat_extract.backbones import Backbone
from feat_extract.config import Config
from feat_extract.dataset import claim_features, find_images, write_npy


def write_features(
    config: Config,
    device: torch.device,
    force: bool = False,
    watch: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, total: items,
) -> dict[str, Any]:
    """Features of `input/<sequence>/<frame>` into `output/<sequence>/<frame>.npy`, (D,).

    Spatial maps (C, h, w) go into the folder `<output>_spatial`. Frames whose features are newer than their image are
    kept. The manifest `output/<output>.json` says what made the features; others are not mixed in. Returns a summary.

    Raises:
        InputError: no images, an unreadable one, a folder with features of another kind, or as `backbones.load`.
    """
    settings = config.feat2d
    dataset = Path(config.dataset)
    out, maps = dataset / settings.output, dataset / f"{settings.output}_spatial"
    files = find_images(dataset / settings.input)
    backbone = backbones.load(settings)
    backbone.module.to(device)
    first = next(iter(next(iter(files.values())).values()))
    dim = run_batch(backbone, [images.read(first)], device)[0].shape[1]
    manifest = {
        "backbone": backbone.name,
        "version": backbone.version,
        "weights_sha256": backbone.fingerprint(),
        "size": backbone.size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "dtype": settings.dtype,
        "dim": dim,
    }
    frames = [(path, Path(sequence) / f"{frame}.npy") for sequence, fs in files.items() for frame, path in fs.items()]
    folders = [out, maps] if settings.spatial else [out]

    def done(path: Path, name: Path) -> bool:
        targets = [folder / name for folder in folders]
        return all(t.is_file() and t.stat().st_mtime_ns >= path.stat().st_mtime_ns for t in targets)

    inputs = [dataset / settings.input]
    with ExitStack() as stack:
        claims = [
            stack.enter_context(claim_features(folder, manifest, "feat-extract feat2d", force, inputs))
            for folder in folders
        ]
        pending = [(path, name) for path, name in frames if not done(path, name)]
        batches = [pending[i : i + settings.batch] for i in range(0, len(pending), settings.batch)]
        for batch in watch(iter(batches), len(batches)):
            summary, spatial = run_batch(backbone, [images.read(path) for path, _ in batch], device)
            for i, (_, name) in enumerate(batch):
                if spatial is not None:
                    write_npy(maps / name, spatial[i].astype(settings.dtype))
                write_npy(out / name, summary[i].astype(settings.dtype))
            for claimed in claims:
                claimed.keep()  # the next run goes on from here
    counts = {"sequences": len(files), "frames": len(frames), "written": len(pending)}
    return {**counts, "kept": len(frames) - len(pending), **manifest, "out": str(out)}


@torch.inference_mode()
def run_batch(
    backbone: Backbone, pictures: list[np.ndarray], device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """Summary vectors (B, D) and spatial maps (B, C, h, w) or None, float32, of RGB uint8 images of any sizes.

    They are resized to the backbone's square. On CUDA the network runs in mixed precision.
    """
    resized = [images.resize(picture, backbone.size, backbone.size) for picture in pictures]
    pixels = torch.from_numpy(np.stack(resized)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (backbone.mean, backbone.std))
    with torch.autocast("cuda", enabled=device.type == "cuda"):
        summary, spatial = backbone.run((pixels - mean) / std)
    return summary.float().cpu().numpy(), None if spatial is None else spatial.float().cpu().numpy()
