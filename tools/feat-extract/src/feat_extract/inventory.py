"""What an artifacts folder holds, and what is wrong with it."""

from pathlib import Path
from typing import Any

from recon4d import InputError, images

from feat_extract.clips import reader
from feat_extract.config import Config
from feat_extract.dataset import PREFIX, find_frames, read_manifest


def take(config: Config) -> dict[str, Any]:
    """Read an artifacts folder whole: how many files each sequence has by part, what kinds of features there are,
    whether there is a checkpoint, and `problems`, one sentence each.

    `original_image` is optional.
    """
    dataset = Path(config.dataset)
    if not dataset.is_dir():
        raise InputError(f"{dataset} is not a folder; fetch it with feat-extract fetch-artifacts, or correct dataset")
    folders = {
        "original_image": dataset / "original_image",
        "lr_image": dataset / config.feat2d.input,
        "feat2d": dataset / config.feat2d.output,
        "feat3d": dataset / config.feat3d.output,
    }
    files = {
        name: find_frames(folder, images.SUFFIXES if "image" in name else (".npy",), PREFIX if name == "feat3d" else "")
        for name, folder in folders.items()
    }
    needed = [name for name in files if name != "original_image"]
    problems = [f"{folders[name]} is missing or empty" for name in needed if not files[name]]
    kinds = {name: read_manifest(folders[name]) or {} for name in ("feat2d", "feat3d")}
    kinds["feat3d"] = kinds["feat3d"] or {"kind": config.feat3d.kind}
    sequences = {}
    for name in sorted({name for found in files.values() for name in found}, key=images.natural_key):
        frames = {frame for found in files.values() for frame in found.get(name, {})}
        sequences[name] = {part: len(found.get(name, {})) for part, found in files.items()}
        for part in needed:
            lost = sorted(frames - set(files[part].get(name, {})), key=images.natural_key)
            if files[part] and lost:
                problems.append(f"{part}/{name} lacks {len(lost)} of {len(frames)} frames, first {lost[0]}")
            read = images.read if part == "lr_image" else reader(part, kinds[part])
            shapes = set()
            for path in files[part].get(name, {}).values():
                try:
                    shapes.add(read(path).shape)
                except InputError as error:
                    problems.append(str(error))
            if len(shapes) > 1:
                problems.append(f"{part}/{name} has files of {len(shapes)} shapes")
    checkpoint = Path(config.checkpoint)
    if not checkpoint.is_file():
        problems.append(f"{checkpoint} is missing; fetch it or train one with feat-extract train")
    return {"sequences": sequences, "kinds": kinds, "checkpoint": checkpoint.is_file(), "problems": problems}
