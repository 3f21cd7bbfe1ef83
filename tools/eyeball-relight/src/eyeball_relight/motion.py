"""Camera poses by structure from motion (COLMAP, Schönberger and Frahm 2016), brought into a tracked head's space.

The track says where the head is and how large; what the pictures themselves show says how the camera moved round it.
"""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import roma
import torch
from recon4d import InputError, images
from recon4d.formats import colmap
from recon4d.formats.shot import intrinsics
from recon4d.lenses import LensCamera

from eyeball_relight.frames import Frame, looking_at

ENOUGH = 0.8  # of the pictures that must be placed for --poses auto to take them
FOCAL = (0.6, 1.7)  # of the track's focal length between which another is believed
FOR_FOCAL, WORTH = 8, 0.03  # pictures that know a focal length, and how far off the track's is told
SURE = 9  # pixels inside the matte's edge from which features are taken


def module() -> Any:
    """pycolmap, an optional extra. Raises InputError where it is not installed."""
    try:
        return importlib.import_module("pycolmap")
    except ImportError as error:
        raise InputError(
            "--poses colmap needs pycolmap; install eyeball-relight[colmap], or take --poses track"
        ) from error


def refine(
    views: list[Frame], lens: LensCamera, middle: np.ndarray, optional: bool, log: Callable[[str], None]
) -> tuple[list[Frame], LensCamera, dict[str, Any]]:
    """Views with the poses of structure from motion in the head's space, their camera, and a summary.

    Views that it cannot place are left out.

    Args:
        middle: (3,) of the head, in its space. optional: keep the track's poses where fewer than ENOUGH are placed.

    Raises:
        InputError: pycolmap is not there; too few are placed and it is not `optional`.
    """
    if optional:
        try:
            module()
        except InputError:
            log("--poses auto: pycolmap is not installed; the track's poses are taken")
            return views, lens, {"poses": "track"}
    with tempfile.TemporaryDirectory() as place:
        found = reconstruct(views, lens, Path(place))
    placed = [i for i, frame in enumerate(views) if frame.name in found]
    hint = _focal(found, lens, log)
    if len(placed) < max(4, (ENOUGH if optional else 0) * len(views)):
        text = f"structure from motion places {len(placed)} of {len(views)} pictures"
        if not optional:
            raise InputError(f"{text}; the skin shows it too little: take --poses track")
        log(f"--poses auto: {text}; the track's poses are taken")
        return views, lens, {"poses": "track", "placed": len(placed)} | hint
    focal = float(np.median([found[views[i].name][1] for i in placed]))
    structure = np.stack([found[views[i].name][0] for i in placed])
    track = np.stack([views[i].world_to_camera for i in placed])
    poses = into_head(structure, track, middle, focal / lens.K[0, 0])
    apart = agreement(poses, track, middle)
    log(
        f"structure from motion places {len(placed)} of {len(views)} pictures; it and the track are "
        f"{apart['degrees']:.2f} degrees and {apart['mm']:.1f} mm apart (medians)"
    )
    kept = [
        replace(views[i], world_to_camera=pose, turn=looking_at(pose[:3, :3] @ middle + pose[:3, 3]))
        for i, pose in zip(placed, poses)
    ]
    K = intrinsics(focal, focal * lens.K[1, 1] / lens.K[0, 0], lens.K[0, 2], lens.K[1, 2])
    said = {"poses": "colmap", "placed": len(placed), "focal": focal, "from_track": apart}
    return kept, LensCamera(K, lens.width, lens.height), said


def _focal(
    found: dict[str, tuple[np.ndarray, float]], lens: LensCamera, log: Callable[[str], None]
) -> dict[str, float]:
    """The focal length of enough pictures, said where the track has another: a few that fit together know it better
    than a track, whose poses lean by it."""
    if len(found) < FOR_FOCAL:
        return {}
    focal = float(np.median([focal for _, focal in found.values()]))
    if abs(focal / lens.K[0, 0] - 1) < WORTH:
        return {}
    log(
        f"structure from motion finds a focal length of {focal:.0f} pixels where the track has {lens.K[0, 0]:.0f}: "
        f"flame-encoder track --focal {focal:.0f} may give better poses"
    )
    return {"focal": focal}


def reconstruct(views: list[Frame], lens: LensCamera, place: Path) -> dict[str, tuple[np.ndarray, float]]:
    """By name, the (4, 4) pose and the focal length of the pictures that COLMAP places together, of any scale."""
    pycolmap = module()
    pycolmap.logging.minloglevel = 2  # errors
    pictures, masks = place / "pictures", place / "masks"
    for frame in views:
        rgba = images.read(frame.file, "RGBA")
        sure = cv2.erode(rgba[..., 3], np.ones((SURE, SURE), np.uint8)) > 250
        images.write_png(pictures / f"{frame.name}.png", np.ascontiguousarray(rgba[..., :3]))
        images.write_png(masks / f"{frame.name}.png.png", sure.astype(np.uint8) * 255)
    parameters = f"{lens.K[0, 0]},{lens.K[0, 2]},{lens.K[1, 2]}"
    reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_PINHOLE", camera_params=parameters, mask_path=str(masks))
    database, names = str(place / "features.db"), [f"{frame.name}.png" for frame in views]
    extraction = pycolmap.FeatureExtractionOptions(use_gpu=False)
    extraction.sift.peak_threshold = 0.003  # skin has little contrast
    pycolmap.extract_features(
        database,
        str(pictures),
        names,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    pycolmap.match_exhaustive(
        database, matching_options=pycolmap.FeatureMatchingOptions(use_gpu=False), device=pycolmap.Device.cpu
    )
    for free in (True, False):  # a head in the middle of its pictures says little about the focal length
        options = pycolmap.IncrementalPipelineOptions(
            random_seed=0, min_model_size=3, multiple_models=False, ba_refine_focal_length=free
        )
        found = _largest(pycolmap, database, pictures, place / f"focal_{free}", options)
        focal = float(np.median([f for _, f in found.values()])) if found else 0.0
        if FOCAL[0] < focal / lens.K[0, 0] < FOCAL[1]:
            break
    return found


def _largest(
    pycolmap: Any, database: str, pictures: Path, out: Path, options: Any
) -> dict[str, tuple[np.ndarray, float]]:
    out.mkdir(parents=True)
    try:
        models = pycolmap.incremental_mapping(database, str(pictures), str(out), options)
    except (RuntimeError, ValueError):  # nothing matches: it has no pictures to begin with
        models = {}
    if not models:
        return {}
    best = max(models, key=lambda k: models[k].num_reg_images())
    (out / "best").mkdir()
    models[best].write(str(out / "best"))
    shots = colmap.read(out / "best")
    return {Path(shot.file).stem: (shot.world_to_camera, float(shot.camera.K[0, 0])) for shot in shots}


def similarity(
    structure: np.ndarray, track: np.ndarray, middle: np.ndarray, zoom: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale s, turn G (3, 3) and shift s T (3,) from the head's space to another one: there, x is at T + G x / s.

    The turn is the mean of what the views say. Scale and place are the least squares of where the head's middle is
    before each camera: s (R_i T + t_i) + R_i G m = zoom p_i, in s and s T.

    Args:
        structure, track: (N, 4, 4) world-to-camera of the same pictures. middle: (3,) m of the head.
        zoom: ratio of the focal lengths, structure's to the track's: a longer one puts the head farther away.
    """
    R, t = structure[:, :3, :3], structure[:, :3, 3]
    between = (R.transpose(0, 2, 1) @ track[:, :3, :3]).sum(0)
    turn = roma.special_procrustes(torch.from_numpy(between)).numpy()
    there = zoom * (track[:, :3, :3] @ middle + track[:, :3, 3])
    left = np.concatenate([t[..., None], R], 2).reshape(-1, 4)
    right = (there - R @ (turn @ middle)).reshape(-1)
    solved = np.linalg.lstsq(left, right, rcond=None)[0]
    return float(solved[0]), turn, solved[1:]


def into_head(structure: np.ndarray, track: np.ndarray, middle: np.ndarray, zoom: float) -> np.ndarray:
    """Poses (N, 4, 4) of another space and scale as poses in the head's space. Args as `similarity`."""
    scale, turn, shift = similarity(structure, track, middle, zoom)
    R, t = structure[:, :3, :3], structure[:, :3, 3]
    out = np.tile(np.eye(4), (len(R), 1, 1))
    out[:, :3, :3] = R @ turn
    out[:, :3, 3] = R @ shift + scale * t
    return out


def agreement(poses: np.ndarray, others: np.ndarray, middle: np.ndarray) -> dict[str, float]:
    """How far two sets of poses (N, 4, 4) of the same head are apart, medians: turns, in degrees, and where the head's
    middle is across the line of sight, in millimetres."""
    between = torch.from_numpy(poses[:, :3, :3].transpose(0, 2, 1) @ others[:, :3, :3])
    turn = roma.rotmat_to_rotvec(between).norm(dim=1).numpy()
    ours, theirs = (p[:, :3, :3] @ middle + p[:, :3, 3] for p in (poses, others))
    across = (ours[:, :2] / ours[:, 2:] - theirs[:, :2] / theirs[:, 2:]) * theirs[:, 2:]
    return {
        "degrees": round(float(np.degrees(np.median(turn))), 3),
        "mm": round(float(1000 * np.median(np.linalg.norm(across, axis=1))), 2),
    }
