"""Captures from poses that other programs found: Metashape, COLMAP, nerfstudio, instant-ngp."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, images, lenses, picture_folders
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.files import write_text
from recon4d.formats import shots
from recon4d.formats.shot import Shot, intrinsics
from recon4d.lenses import LensCamera
from recon4d.picture_folders import PictureFolder
from recon4d.runs import claim

from eyeball_relight import captures
from eyeball_relight.pictures import write_picture


@dataclass(frozen=True, eq=False)
class Found:
    """A picture and what goes with it.

    shot: as the source has it. picture, mask: files; a mask that is the picture itself is its alpha. orientation: by
    EXIF, the turn from the picture that the pose is of to the upright one; 1 is none.
    """

    shot: Shot
    picture: Path
    mask: Path | None
    orientation: int


def normalised(camera: Camera, size: float, source: Path) -> tuple[Camera, float]:
    """Cameras moved and scaled so that what they look at is at the origin and fits into [-1, 1]^3; and the scale.

    The middle is the point nearest to all optical axes; the cube spans `size` of the shorter side of the picture.

    Raises InputError, naming the `source`, where the axes have no such point.
    """
    pose = camera.world_to_camera
    centre, axis = camera.center, pose[:, 2, :3] / pose[:, 2, :3].norm(dim=1, keepdim=True)
    across = torch.eye(3, dtype=pose.dtype) - axis[:, :, None] * axis[:, None]
    normal = across.sum(0)
    if torch.linalg.matrix_rank(normal, rtol=1e-6) < 3:
        raise InputError(f"{source}: all cameras look in the same direction; a capture needs views from several sides")
    middle = torch.linalg.solve(normal, (across @ centre[:, :, None]).sum(0)[:, 0])
    distance = (centre - middle).norm(dim=1).median()
    half = 0.5 * size * float(distance) * min(camera.width, camera.height) / float(camera.K[0, 0])
    rotation = pose[:, :3, :3] / pose[:, 2:3, :3].norm(dim=2, keepdim=True)  # Metashape's may carry the chunk's scale
    moved = torch.eye(4, dtype=pose.dtype).repeat(len(pose), 1, 1)
    moved[:, :3, :3] = rotation
    moved[:, :3, 3] = -(rotation @ ((centre - middle) / half)[:, :, None])[:, :, 0]
    return Camera(camera.K, moved, camera.width, camera.height), 1 / half


def common_camera(cameras: list[LensCamera]) -> LensCamera:
    """The pinhole that all pictures are brought to: the size that most have, and the medians of their intrinsics."""
    sizes = [(camera.width, camera.height) for camera in cameras]
    width, height = max(sizes, key=sizes.count)
    K = np.median([c.K for c in cameras if (c.width, c.height) == (width, height)], 0)
    return LensCamera(intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2]), width, height)


def import_capture(
    source: str | Path,
    pictures: str | Path,
    masks: str | Path | None,
    out: str | Path,
    cube: float = 1.0,
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write a capture in our layout: undistorted pictures and masks, `transforms.json`, `config.yaml`; a summary.

    Every picture is undistorted by the lens of its own camera, turned upright with its pose where EXIF says so, and
    brought to one camera for all. Masks are those of the folder, those that the source names, or the pictures' alpha.

    Args:
        source: Metashape's XML, a COLMAP model's folder, or a transforms.json or its folder.
        pictures, masks: folders whose files are named as in `source`; see `recon4d.picture_folders`.
        cube: side of the head's cube as a share of the picture's shorter side; see `normalised`.
        force: replace what an earlier import wrote there.
        log: is told what was left out or changed.

    Raises:
        InputError: unreadable poses; pictures that are missing or of another size than the poses say.
    """
    out, source, pictures = Path(out), Path(source), Path(pictures)
    source = source / "transforms.json" if (source / "transforms.json").is_file() else source
    for folder in (pictures, masks):
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"{folder} is not a folder; give the folder of the pictures that {source.name} names")
    there = picture_folders.open_folder(pictures)
    mask_folder = None if masks is None else picture_folders.open_folder(masks)
    read = shots.read(source, lambda name: images.header(_picture(there, name, source)).upright)
    for note in read.notes:
        log(f"{source}: {note}")
    if len(read.shots) < 2:
        raise InputError(f"{source} has poses of {len(read.shots)} pictures; at least two are needed")
    found = [_found(shot, there, mask_folder, source, log) for shot in read.shots]
    try:
        stems = picture_folders.distinct_stems([shot.file for shot in read.shots])
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    seen = [lenses.upright(one.shot.camera, one.orientation) for one in found]
    target = common_camera(seen)
    others = sum(
        (camera.width, camera.height) != (target.width, target.height) or not np.allclose(camera.K, target.K)
        for camera in seen
    )
    if others:
        log(f"{others} of {len(seen)} pictures are of another camera and are brought to {target.width}x{target.height}")
    turns = torch.from_numpy(np.stack([lenses.turned(one.orientation) for one in found]))
    pose = torch.from_numpy(np.stack([shot.world_to_camera for shot in read.shots]))
    pose[:, :3] = turns @ pose[:, :3]
    camera, scale = normalised(Camera(torch.from_numpy(target.K), pose, target.width, target.height), cube, source)
    masked = any(one.mask is not None for one in found)
    with claim(out, "eyeball-relight import", force=force, inputs=[source, pictures, masks]):
        for one, stem in progress(list(zip(found, stems)), "importing"):
            write_picture(out / "image" / f"{stem}.png", _straight(one, one.picture, target) / 255)
            if masked:
                write_picture(out / "mask" / f"{stem}.png", _straight(one, one.mask, target, is_mask=True) / 255)
        captures.write_poses(out, [f"image/{stem}.png" for stem in stems], camera)
        write_text(out / "config.yaml", "data:\n  bound: 1.0\n")
        write_text(out / "config_wo-hybrid.yaml", "data:\n  bound: 1.0\neyes:\n  enabled: false\n")
    size = {"width": camera.width, "height": camera.height}
    return {"frames": len(stems), **size, "masks": masked, "scale": scale, "folder": str(out)}


def _picture(pictures: PictureFolder, name: str, source: Path) -> Path:
    path = picture_folders.find(pictures, name)
    if path is None:
        raise InputError(f"{pictures.folder} has no picture {name} that {source.name} names; add it")
    return path


def _found(
    shot: Shot, pictures: PictureFolder, masks: PictureFolder | None, source: Path, log: Callable[[str], None]
) -> Found:
    """A shot's files. Raises InputError where one is missing or of another size than the source says."""
    path, camera = _picture(pictures, shot.file, source), shot.camera
    header = images.header(path)
    size = camera.width, camera.height
    if size not in ((header.width, header.height), header.upright):
        raise InputError(
            f"{path} has {header.width}x{header.height} pixels and {source.name} says {size[0]}x{size[1]}; "
            "give the pictures that were aligned"
        )
    as_stored = size == (header.width, header.height)  # the pose is of what was stored: its turn is still to come
    mask: Path | None = None
    if masks is not None:
        mask = picture_folders.find_mask(masks, shot.mask or shot.file, path)
        if mask is None and header.alpha and masks.folder.resolve() == pictures.folder.resolve():
            mask = path
        if mask is None:
            raise InputError(f"{masks.folder} has no mask of {path.name}; add it, named like the picture")
    elif shot.mask is not None:
        mask = source.parent / shot.mask
        if not mask.resolve().is_relative_to(source.parent.resolve()) or not mask.is_file():
            raise InputError(f"{source} names the mask {shot.mask}, which is not there; give the masks with --masks")
    elif header.alpha and images.read(path, "RGBA")[..., 3].min() < 255:
        mask = path
    return Found(shot, path, mask, header.orientation if as_stored and header.orientation in (3, 6, 8) else 1)


def _straight(one: Found, path: Path | None, target: LensCamera, is_mask: bool = False) -> np.ndarray:
    """A picture or a mask as the target sees it, (H, W) or (H, W, 3) float32 of 0 to 255; no mask is white."""
    camera = one.shot.camera
    size = camera.width, camera.height
    if path is None:
        picture = np.full(size[::-1], 255, np.uint8)
    else:
        header = images.header(path)
        upright = size != (header.width, header.height)  # else the pose is of the picture as it is stored
        picture = images.read_mask(path, upright=upright) if is_mask else images.read(path, upright=upright)
        if is_mask and path == one.picture:  # its alpha, opaque or not
            picture = images.read(path, "RGBA", upright=upright)[..., 3]
        if is_mask and picture.shape[::-1] == size[::-1] != size and one.orientation in (6, 8):
            # a mask drawn on the upright picture: back to how the picture is stored
            picture = np.rot90(picture, 1 if one.orientation == 6 else -1)
    if picture.shape[:2] != size[::-1]:
        raise InputError(
            f"{path} has {picture.shape[1]}x{picture.shape[0]} pixels, its picture {size[0]}x{size[1]}; "
            "masks must have the size of their pictures"
        )
    values = np.ascontiguousarray(picture).astype(np.float32)
    return lenses.straighten(values, camera, target, lenses.turned(one.orientation))
