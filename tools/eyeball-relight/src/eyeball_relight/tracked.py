"""Captures from a video whose head was tracked: the head is taken as the still thing, and the camera goes round it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, images, lenses, picture_folders
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.files import write_text
from recon4d.formats import track as tracks
from recon4d.formats.landmarks import read_landmarks
from recon4d.formats.shot import intrinsics
from recon4d.formats.track import Track
from recon4d.head import HeadModel, load
from recon4d.lenses import LensCamera
from recon4d.picture_folders import PictureFolder
from recon4d.records import number, read_records
from recon4d.runs import claim
from torch import Tensor

from eyeball_relight import adjusting, brdf, captures, eyes, headmasks, headstart, lamp, motion, selection
from eyeball_relight.frames import Frame, looking_at
from eyeball_relight.pictures import write_picture

MARGIN = 0.96  # of the picture that the head fills at most
MOST_PIXELS, STEP = 256, 8  # of a side that is not asked for; sides are multiples of STEP
RADIUS = (0.0105, 0.0185)  # metres; limits of an eyeball's radius: people's are 12 mm, the open head's 16
HEAD = "head.npz"
OCCLUSION, ROOM = 0.02, 0.3  # losses.occlusion, losses.room
SIZE_OF_HEAD = 1.05  # of the head that the cube holds


def import_track(
    folder: str | Path,
    out: str | Path,
    pictures: str | Path | None = None,
    landmarks: str | Path | None = None,
    frames: int = 40,
    size: int | None = None,
    head_model: str | Path | None = None,
    poses: str = "auto",
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write a capture in our layout from a tracked video; a summary.

    Sharp frames of one still face with open eyes are chosen, cut out around the head and brought to one camera. The
    capture's space is the head model's, in metres, about the head's middle.

    Args:
        folder: holds `track.npz` and `images/` with alpha, as `flame-encoder track` and `prep-faces matte` leave them.
        pictures: folder of the pictures with alpha; None is `images` in `folder`.
        landmarks: folder of landmarks per frame, which outline the eyes; None is `landmarks` in `folder`, if there.
        frames: views, at most. size: pixels per side; None is what the head has in the video, up to MOST_PIXELS.
        head_model: the track's, where that is not the open head.
        poses: `track`, `skin` (the track's, corrected by what the pictures show of the skin), `colmap` (structure from
            motion on the chosen frames), or `auto`, the first of skin, colmap and track that places most pictures.
        force: replace what an earlier import wrote there.
        log: is told what was left out, and warned.

    Raises:
        InputError: no track or pictures, a head model of other coefficients, too few frames that will do.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / "track.npz").is_file():
        raise InputError(f"{folder} has no track.npz; make it with flame-encoder track --out {folder}")
    track = tracks.read(folder / "track.npz").of_one_camera()
    if track.Ks is not None:
        raise InputError(f"{folder / 'track.npz'} has a camera for each picture; track the whole frames instead")
    head = _head_of(track, head_model, folder)
    where = Path(pictures or folder / "images")
    there = picture_folders.open_folder(where)
    files = [_picture(there, str(name)) for name in track.names]
    points = Path(landmarks) if landmarks is not None else folder / "landmarks"
    if landmarks is not None and not points.is_dir():
        raise InputError(f"--landmarks {points} is not a folder; give one of prep-faces landmarks")
    lens = LensCamera(track.K.astype(np.float64), int(track.image_size[0]), int(track.image_size[1]))
    shapes = selection.head_shape(track, head)
    chosen, found = selection.choose(track, head, shapes, frames, lambda i: _sharpness(files[i], lens), log)
    still = shapes[torch.from_numpy(chosen)].median(0).values
    middle = found.middle
    views = [
        Frame(Path(files[i]).stem, files[i], pose, looking_at(pose[:3, :3] @ middle + pose[:3, 3]))
        for i, pose in ((int(i), found.world_to_camera[i]) for i in chosen)
    ]
    summary: dict[str, Any] = {"frames": len(views), "of": len(track), "poses": "track"}
    if poses != "track":
        said: dict[str, Any] = {"poses": "track"}
        if poses != "colmap":
            views, lens, still, said = adjusting.refine(views, lens, head, still, middle, poses == "auto", log)
        if said["poses"] == "track":
            views, lens, said = motion.refine(views, lens, middle, poses == "auto", log)
        summary |= said | {"frames": len(views)}
    target, reach = _common(views, lens, middle, size)
    shifted = np.stack([frame.turn @ frame.world_to_camera[:3] for frame in views])
    shifted[:, :, 3] += shifted[:, :, :3] @ middle
    pose = torch.eye(4, dtype=torch.float64).repeat(len(views), 1, 1)
    pose[:, :3] = torch.from_numpy(shifted)
    camera = Camera(torch.from_numpy(target.K), pose, target.width, target.height)
    still = (still.double() - torch.from_numpy(middle)).float()
    bound = round(max(SIZE_OF_HEAD * float(still.abs().max()), reach), 4)
    summary |= {"width": target.width, "height": target.height, "bound": bound, "folder": str(out)}
    with claim(out, "eyeball-relight import", force=force, inputs=[folder, where, points, head_model]):
        summary |= _write(out, views, lens, camera, head, still, points, bound, summary["poses"] == "skin", log)
    return summary


def _head_of(track: Track, head_model: str | Path | None, folder: Path) -> HeadModel:
    head = load(head_model)
    if track.shape.size > head.n_shape or track.expression.shape[1] > head.n_expression:
        raise InputError(
            f"{folder / 'track.npz'} is of {track.head_model} and has more coefficients than {head.name}; "
            "give its head model with --head-model"
        )
    return head


def _picture(there: PictureFolder, name: str) -> Path:
    path = picture_folders.find(there, name)
    if path is None:
        raise InputError(
            f"{there.folder} has no picture {name} that the track names; run prep-faces matte on all frames"
        )
    if not images.header(path).alpha:
        raise InputError(f"{path} has no alpha, which says where the head is; make it with prep-faces matte")
    return path


def _read(path: Path, lens: LensCamera) -> np.ndarray:
    picture = images.read(path, "RGBA")
    if picture.shape[:2] != (lens.height, lens.width):
        raise InputError(
            f"{path} has {picture.shape[1]}x{picture.shape[0]} pixels and the track {lens.width}x{lens.height}; "
            "give the pictures that were tracked"
        )
    return picture


def _sharpness(path: Path, lens: LensCamera) -> float:
    picture = _read(path, lens)
    return selection.sharpness(picture[..., :3], picture[..., 3])


def _common(views: list[Frame], lens: LensCamera, middle: np.ndarray, size: int | None) -> tuple[LensCamera, float]:
    """The camera that all views share, in whose pictures every matte fits, and how far mattes reach from the head's
    middle, metres."""
    widest, reach = 0.0, 0.0
    for frame in progress(views, "measuring", len(views)):
        rows, columns = np.nonzero(_read(frame.file, lens)[..., 3] > 127)
        if len(rows) == 0:
            raise InputError(f"{frame.file} is transparent everywhere; opaque is the head")
        rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1) @ np.linalg.inv(lens.K).T @ frame.turn.T
        across = np.quantile(np.abs(rays[:, :2] / rays[:, 2:]).max(1), 0.999)
        distance = np.linalg.norm(frame.world_to_camera[:3, :3] @ middle + frame.world_to_camera[:3, 3])
        widest, reach = max(widest, float(across)), max(reach, float(across * distance))
    own = 2 * widest * lens.K[0, 0] / MARGIN
    side = size or int(min(max(own // STEP * STEP, 64), MOST_PIXELS))
    focal = MARGIN * side / 2 / widest
    return LensCamera(intrinsics(focal, focal, side / 2, side / 2), side, side), reach


def moved(points: np.ndarray, lens: LensCamera, frame: Frame, camera: Camera) -> np.ndarray:
    """Pixels (n, 2) of the video's frame as pixels of the capture's picture."""
    rays = np.concatenate([points, np.ones_like(points[:, :1])], 1) @ np.linalg.inv(lens.K).T @ frame.turn.T
    pixels: np.ndarray = rays[:, :2] / rays[:, 2:] @ camera.K[:2, :2].numpy().T + camera.K[:2, 2].numpy()
    return pixels


def outer_skin(head: HeadModel) -> Tensor:
    """Triangles (F, 3) of the head that are neither eyeballs nor inside the mouth."""
    regions = head.regions or {}
    inner = torch.zeros(len(head.v_template), dtype=torch.bool)
    for name in ("eyes", "mouth_interior"):
        if name in regions:
            inner |= regions[name]
    skin: Tensor = head.faces[~inner[head.faces.long()].any(1)]
    return skin


def _times(table: Path) -> dict[str, float]:
    """Seconds into the video by the stem of a frame, of the table that prep-faces writes beside its landmarks."""
    if not table.is_file():
        return {}
    records = [r for r in read_records(table) if isinstance(r.get("name"), str) and number(r.get("time"))]
    return {Path(r["name"]).stem: float(r["time"]) for r in records}


def _outlines(folder: Path, frame: Frame, lens: LensCamera, camera: Camera) -> list[np.ndarray] | None:
    faces = read_landmarks(folder / f"{frame.name}.npy")
    return headmasks.eye_outlines(moved(faces[0], lens, frame, camera) if len(faces) else None)


def _write(
    out: Path,
    views: list[Frame],
    lens: LensCamera,
    camera: Camera,
    head: HeadModel,
    still: Tensor,
    points: Path,
    bound: float,
    by_skin: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    target = LensCamera(camera.K.numpy(), camera.width, camera.height)
    pictures, masks, hair, both = [], [], [], []
    for i, frame in enumerate(progress(views, "importing", len(views))):
        rgba = _read(frame.file, lens).astype(np.float32) / 255
        linear: np.ndarray = np.dstack([rgba[..., :3] ** brdf.GAMMA * rgba[..., 3:], rgba[..., 3]])
        ratio = max(1.0, lens.K[0, 0] / target.K[0, 0])
        if ratio > 1.2:  # what the smaller picture can't show would alias
            linear = cv2.GaussianBlur(linear, (0, 0), 0.4 * ratio)
        straight = lenses.straighten(np.ascontiguousarray(linear), lens, target, frame.turn)
        alpha = straight[..., 3].clip(0, 1)
        pictures.append((straight[..., :3].clip(0, 1) ** (1 / brdf.GAMMA) * 255 + 0.5).astype(np.uint8))
        masks.append((alpha * 255 + 0.5).astype(np.uint8))
        view = Camera(camera.K.float(), camera.world_to_camera[i].float(), camera.width, camera.height)
        seen = headmasks.head_view(head, still, view)
        hair.append(headmasks.hair_mask(head, still, view, seen, masks[-1]))
        outlines = _outlines(points, frame, lens, camera) if points.is_dir() else None
        both.append(headmasks.eye_masks(head, view, seen, masks[-1], outlines))
    stack = np.stack(pictures)
    balls = [headmasks.snapped(stack, np.stack([pair[k] for pair in both])) for k in range(2)]
    balls[1] &= ~balls[0]
    for i, frame in enumerate(views):
        name = f"{frame.name}.png"
        write_picture(out / "image" / name, pictures[i] / 255)
        write_picture(out / "mask" / name, masks[i] / 255)
        for where, values in zip(("hair_mask", *eyes.MASKS), (hair[i], *(ball[i] for ball in balls))):
            write_picture(out / where / name, values.astype(np.float32))
    captures.write_poses(out, [f"image/{frame.name}.png" for frame in views], camera)
    ldm = headmasks.eye_points(head, still)
    headstart.write(out / HEAD, still, outer_skin(head))
    config = f"data:\n  bound: {bound}\n  head: {HEAD}\n  left_eye_ldm: {ldm[0]}\n  right_eye_ldm: {ldm[1]}\n"
    balls_of_head = headmasks.eyeballs(head, still)
    if by_skin and all(RADIUS[0] < ball[3] < RADIUS[1] for ball in balls_of_head):
        config += f"  eyeballs: {balls_of_head}\n"
    config += "light:\n  exposure: true\n"
    config += f"losses:\n  occlusion: {OCCLUSION}\n  room: {ROOM}\n"
    config += f"eyes:\n  radius: [{RADIUS[0]}, {RADIUS[1]}]\n"
    write_text(out / "config.yaml", config)
    write_text(out / "config_wo-hybrid.yaml", config + "  enabled: false\n")
    listed = [{"name": f.name, "turn": f.turn.tolist(), "world_to_camera": f.world_to_camera.tolist()} for f in views]
    times = _times(points.parent / "frames.jsonl")
    listed = [frame | ({"time": times[frame["name"]]} if frame["name"] in times else {}) for frame in listed]
    source = {"K": lens.K.tolist(), "size": [lens.width, lens.height], "frames": listed}
    write_text(out / "source.json", json.dumps(source, indent=1) + "\n")
    seen_light = lamp.look(stack, np.stack(masks), np.stack(hair), camera, head, still)
    warning = lamp.warning(seen_light)
    if warning:
        log(f"warning: {warning}")
    pixels = {f"{side}_eye_pixels": int(ball.sum()) for side, ball in zip(eyes.SIDES, balls)}
    return pixels | {"light": seen_light.__dict__ if seen_light else None, "light_warning": warning}
