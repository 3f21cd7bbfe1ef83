"""What an artifacts folder holds, and what is wrong with it."""

from pathlib import Path

from recon4d import InputError

from feat_extract.clips import reader
from feat_extract.config import Config
from feat_extract.dataset import IMAGE_SUFFIXES, PREFIX, find_frames, natural, read_image, read_manifest


def check(config: Config) -> tuple[dict, list[str]]:
    """What an artifacts folder holds per sequence, and what is wrong with it, one sentence each.

    Every feature file is read. `original_image` is optional.
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
        name: find_frames(folder, IMAGE_SUFFIXES if "image" in name else (".npy",), PREFIX if name == "feat3d" else "")
        for name, folder in folders.items()
    }
    problems: list[str] = [f"{folders[name]} is missing or empty" for name, found in files.items() if not found]
    problems = [text for text in problems if not text.startswith(str(folders["original_image"]))]
    kinds = {name: read_manifest(folders[name]) or {} for name in ("feat2d", "feat3d")}
    kinds["feat3d"] = kinds["feat3d"] or {"kind": config.feat3d.kind}
    sequences = {}
    for name in sorted({name for found in files.values() for name in found}, key=natural):
        frames = {frame for found in files.values() for frame in found.get(name, {})}
        sequences[name] = {part: len(found.get(name, {})) for part, found in files.items()}
        for part, found in files.items():
            lost = sorted(frames - set(found.get(name, {})), key=natural)
            if found and lost and part != "original_image":
                problems.append(f"{part}/{name} lacks {len(lost)} of {len(frames)} frames, first {lost[0]}")
        for part in ("lr_image", "feat2d", "feat3d"):
            read = read_image if part == "lr_image" else reader(part, kinds[part])
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
    return {"sequences": sequences, "kinds": kinds, "checkpoint": checkpoint.is_file()}, problems
