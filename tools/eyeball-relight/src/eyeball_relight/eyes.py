"""Where the eyes are: marks painted on maps, landmarks seen in pictures, masks rendered from maps."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, mesh
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.files import parse_json, read_npz
from recon4d.formats.landmarks import read_landmarks, to_ibug
from recon4d.runs import claim
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares
from torch import Tensor

from eyeball_relight import captures, config, objfile
from eyeball_relight.captures import Capture
from eyeball_relight.pictures import read_picture, write_picture

SIDES = ("left", "right")
MASKS = ("leye_mask", "reye_mask")  # a capture's folders, in the order of SIDES
IBUG = {"left": range(42, 48), "right": range(36, 42)}  # outlines of the eyes among 68 landmarks, from corner to corner
GREEN = (0.0, 1.0, 0.0)
INLIER = 2.5  # pixels
SHRUNK = 0.6  # landmarks lie so far from an eye's middle towards its outline: on the eyeball, clear of the lids
LANDMARKS = 8


def find_landmarks(
    data_root: str | Path,
    asset: str | Path,
    left: str | Path | None = None,
    right: str | Path | None = None,
    landmarks: str | Path | None = None,
    write: str | Path | None = None,
    force: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Points on the eyeballs: under green marks on the diffuse map, or from landmarks in the pictures.

    With landmarks the eyes are also painted, into `diffuse_leye_mask.png` and `diffuse_reye_mask.png` of the capture.

    Args:
        data_root: the capture. asset: the folder of the first step's export.
        left, right: diffuse maps with green marks on each eye.
        landmarks: a folder of 68 landmarks per picture, instead of marks.
        write: a `config.yaml` that takes the points.
        force: replace maps that this painted before.

    Returns:
        `left_eye_ldm` and `right_eye_ldm`, lists of points; with landmarks also how well they agree.

    Raises:
        InputError: neither or both kinds of input, one that is not readable, marks or landmarks that lead nowhere.
    """
    if (landmarks is None) == (left is None and right is None) or (landmarks is None and None in (left, right)):
        raise InputError("give --left and --right, maps with green marks, or --landmarks, a folder")
    if write is not None:
        config.load(write)
    data_root = Path(data_root)
    coord, mask = read_maps(Path(asset))
    points: dict[str, np.ndarray] = {}
    report: dict[str, int] = {}
    if left is not None and right is not None:
        points = {side: green_marks(Path(path), coord, mask) for side, path in zip(SIDES, (left, right))}
    elif landmarks is not None:
        painted = {side: data_root / f"diffuse_{side[0]}eye_mask.png" for side in SIDES}
        inputs, names = [asset, landmarks, write], tuple(path.name for path in painted.values())
        with claim(data_root, "eyeball-relight eyeball-landmarks", force=force, inputs=inputs, names=names):
            found, report = outlines(captures.read(data_root, log), Path(landmarks))
            for side in SIDES:
                picture, points[side] = from_outline(found[side], coord, mask)
                write_picture(painted[side], picture)
    result = {f"{side}_eye_ldm": points[side].tolist() for side in SIDES}
    if write is not None:
        config.add_landmarks(write, result)
    return result | report


def read_maps(export: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, N, 3) of an export's texels and where there are any (N, N)."""
    arrays = read_npz(export / "coord.npz")
    coord, mask = (arrays.get(key, np.zeros(0)) for key in ("coord", "mask"))
    if mask.ndim != 2 or mask.dtype != bool or coord.shape != (*mask.shape, 3) or coord.dtype.kind != "f":
        raise InputError(f"{export / 'coord.npz'} is not one of eyeball-relight export; export again")
    return coord, mask


def green_marks(path: Path, coord: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Points (M, 3) on the surface under the green marks, RGB (0, 1, 0), of a painted diffuse map; one per blot.

    Raises InputError for a map of another size, or without marks.
    """
    image = read_picture(path, 3)
    if image.shape[:2] != mask.shape:
        raise InputError(f"{path} has {image.shape[1]}x{image.shape[0]} texels and the export {mask.shape[1]}")
    green = (np.abs(image - np.array(GREEN)) < 0.25).all(-1) & mask
    count, label = cv2.connectedComponents(green.astype(np.uint8), connectivity=8)
    if count < 2:
        raise InputError(f"{path} has no green marks (RGB 0, 255, 0) on the surface; paint some on the eyeball")
    return np.stack([coord[label == i].mean(0) for i in range(1, count)])


def triangulate(pixels: np.ndarray, seen: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """A point (3,) from its pixels (V, 2) in the views where it was `seen` (V,), and which of them agree (V,).

    Every pair of views proposes a point, the one that most views see within INLIER pixels is taken, and refined with
    Huber's loss. Raises InputError where no three views agree.
    """
    projection = (camera.K @ camera.world_to_camera[:, :3]).double().numpy()
    views = np.flatnonzero(seen)

    def misses(point: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        image = projection[chosen] @ np.append(point, 1.0)
        away: np.ndarray = image[:, :2] / np.where(image[:, 2:] > 1e-9, image[:, 2:], np.nan) - pixels[chosen]
        return away

    best, agree = None, np.zeros(len(seen), bool)
    pairs = list(combinations(views, 2))
    pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:400]]
    for pair in pairs:
        rows = np.concatenate([pixels[i][:, None] * projection[i][2] - projection[i][:2] for i in pair])
        point = np.linalg.svd(rows)[2][-1]
        if abs(point[3]) < 1e-12:
            continue
        point = point[:3] / point[3]
        near = np.nan_to_num(np.linalg.norm(misses(point, views), axis=1), nan=np.inf) < INLIER
        if near.sum() > agree.sum():
            best, agree = point, np.isin(np.arange(len(seen)), views[near])
    if best is None or agree.sum() < 3:
        raise InputError("the landmarks of no three views agree on a point in space; check the poses and landmarks")
    chosen = np.flatnonzero(agree)
    found = least_squares(lambda p: misses(p, chosen).ravel(), best, loss="huber", f_scale=1.0)
    return found.x, agree


def outlines(capture: Capture, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Outlines (6, 3) of both eyes in space from landmarks per picture, and how well they fit.

    Args:
        folder: `<stem>.npy` as prep-faces landmarks writes them; pictures without are skipped.
            `landmarks.jsonl` beside the folder says which size the pictures had.
    """
    pixels = np.zeros((len(capture), 68, 2))
    seen = np.zeros(len(capture), bool)
    listing = folder.parent / "landmarks.jsonl"
    sizes = _sizes(listing) if listing.is_file() else {}
    for i, name in enumerate(capture.names):
        path = folder / f"{name}.npy"
        if not path.is_file():
            continue
        faces = to_ibug(read_landmarks(path))
        if len(faces) != 1 or not np.isfinite(faces[0, 36:48]).all():
            raise InputError(f"{path} does not hold the landmarks of one face, with its eyes; find the landmarks again")
        width, height = sizes.get(name, (capture.camera.width, capture.camera.height))
        pixels[i] = faces[0] * [capture.camera.width / width, capture.camera.height / height]
        seen[i] = True
    if seen.sum() < 3:
        raise InputError(
            f"{folder} has landmarks of {seen.sum()} of the {len(capture)} pictures; at least three are needed"
        )
    found, agreeing = {}, []
    for side in SIDES:
        lifted = [triangulate(pixels[:, k], seen, capture.camera) for k in IBUG[side]]
        found[side] = np.stack([p for p, _ in lifted])
        agreeing += [int(agree.sum()) for _, agree in lifted]
    return found, {"views_with_landmarks": int(seen.sum()), "fewest_agreeing_views": min(agreeing)}


def _sizes(listing: Path) -> dict[str, tuple[float, float]]:
    """Width and height of the pictures that `landmarks.jsonl` lists, by name. Raises InputError for another file."""
    sizes: dict[str, tuple[float, float]] = {}
    for number, line in enumerate(listing.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        record = parse_json(line, f"{listing}, line {number}")
        if not isinstance(record, dict):
            raise InputError(f"{listing}, line {number} is not of prep-faces; find the landmarks again")
        try:
            if "width" in record:
                sizes[Path(record["file"]).stem] = (float(record["width"]), float(record["height"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{listing}, line {number} is not of prep-faces ({error}); find them again") from error
    if not all(0 < side < 1e6 for pair in sizes.values() for side in pair):
        raise InputError(f"{listing} has a picture without width and height; find the landmarks again")
    return sizes


def curve(outline: np.ndarray, n: int = 24) -> np.ndarray:
    """An eye's outline (6, 3) as a closed curve (2 n, 3): a cubic spline along each lid, from corner to corner."""
    parts = []
    for index in ((0, 1, 2, 3), (3, 4, 5, 0)):
        lid = outline[list(index)]
        along = np.append(0, np.linalg.norm(np.diff(lid, axis=0), axis=1).cumsum())
        parts.append(CubicSpline(along, lid)(np.linspace(0, along[-1], n, endpoint=False)))
    return np.concatenate(parts)


def inside(points: np.ndarray, ring: np.ndarray, reach: float) -> np.ndarray:
    """Which points (N, 3) lie inside a nearly flat ring (M, 3), seen across its plane, and nearer to it than reach."""
    middle = ring.mean(0)
    axes = np.linalg.svd(ring - middle)[2]
    flat = ((ring - middle) @ axes[:2].T).astype(np.float32)
    local = (points - middle) @ axes.T
    near = np.flatnonzero(np.abs(local[:, 2]) < reach)
    polygon = flat.reshape(-1, 1, 2)
    chosen = [i for i in near if cv2.pointPolygonTest(polygon, tuple(map(float, local[i, :2])), False) >= 0]
    out = np.zeros(len(points), bool)
    out[chosen] = True
    return out


def from_outline(outline: np.ndarray, coord: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An eye's map (N, N) of 0 and 1, and LANDMARKS points (M, 3) on the surface inside it, from its outline (6, 3).

    Raises InputError where the surface has nothing inside the outline.
    """
    ring = curve(outline)
    width = float(np.linalg.norm(outline[0] - outline[3]))
    rows, columns = np.nonzero(mask)
    points = coord[rows, columns]
    close = np.flatnonzero(np.linalg.norm(points - ring.mean(0), axis=1) < width)
    chosen = close[inside(points[close], ring, 0.5 * width)]
    if len(chosen) == 0:
        raise InputError("the exported surface has nothing where the landmarks see an eye; train longer, then export")
    painted = np.zeros(mask.shape, np.float32)
    painted[rows[chosen], columns[chosen]] = 1
    middle = ring.mean(0)
    axes = np.linalg.svd(ring - middle)[2]
    local, goal = (points[chosen] - middle) @ axes[:2].T, (ring - middle) @ axes[:2].T * SHRUNK
    goal = goal[np.linspace(0, len(goal), LANDMARKS, endpoint=False).astype(int)]
    picked = np.linalg.norm(local[:, None] - goal, axis=2).argmin(0)
    return painted, points[chosen][picked]


SURE, REACH, AROUND = 2, 2, 6  # pixels of an eye of EYE pixels
EYE, MAGNIFIED = 100, 2


def snap(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Masks (N, H, W) of one eye whose outlines follow the colours of pictures (N, H, W, 3), of uint8.

    Pixels up to REACH outside an outline and SURE inside are decided by GrabCut (Rother et al. 2004), with the
    colour models of all views together.
    """
    boxes: list[tuple[int, slice, slice]] = []
    shown = np.flatnonzero(masks.any((1, 2)))
    if len(shown) == 0:
        return masks
    scale = max(1.0, float(np.sqrt(np.median(masks[shown].sum((1, 2))) / EYE)))
    sure, reach, margin = (round(scale * pixels) for pixels in (SURE, REACH, AROUND))
    for i in shown:
        rows, columns = np.nonzero(masks[i])
        if len(rows) > 5:
            down, right = (slice(max(0, x.min() - margin), x.max() + margin + 1) for x in (rows, columns))
            boxes.append((int(i), down, right))
    if not boxes:
        return masks
    height, width = (max(masks[b].shape[axis] for b in boxes) for axis in (0, 1))

    def tile(picture: np.ndarray, how: int) -> np.ndarray:
        grow = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), *[(0, 0)] * (picture.ndim - 2))
        return cv2.resize(np.pad(picture, grow, mode="edge"), None, fx=MAGNIFIED, fy=MAGNIFIED, interpolation=how)

    labels = []
    for b in boxes:
        inner = masks[b].astype(np.uint8)
        label = np.full(inner.shape, cv2.GC_BGD, np.uint8)
        label[cv2.dilate(inner, np.ones((2 * reach + 1,) * 2)) > 0] = cv2.GC_PR_BGD
        label[inner > 0] = cv2.GC_PR_FGD
        label[cv2.erode(inner, np.ones((2 * sure + 1,) * 2)) > 0] = cv2.GC_FGD
        labels.append(tile(label, cv2.INTER_NEAREST))
    label = np.concatenate(labels)
    picture = np.concatenate([tile(image[b], cv2.INTER_CUBIC) for b in boxes])
    if not (label == cv2.GC_FGD).any():
        return masks
    cv2.setRNGSeed(0)
    cv2.grabCut(picture, label, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    out = np.zeros_like(masks)
    for b, part in zip(boxes, np.split(label, len(boxes))):
        eye = np.isin(part, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
        rows, columns = out[b].shape
        out[b] = cv2.resize(eye, (width, height), interpolation=cv2.INTER_AREA)[:rows, :columns] > 0.5
    return out


def write_masks(
    data_root: str | Path,
    mesh_path: str | Path,
    left: str | Path | None = None,
    right: str | Path | None = None,
    snapped: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Render painted eye maps into `leye_mask/` and `reye_mask/` of a capture; returns how many pixels each eye has.

    Args:
        mesh_path: `mesh_uv.obj` of the first step's export.
        left, right: pictures over its texture coordinates, white is the eye; None is `diffuse_leye_mask.png` and
            `diffuse_reye_mask.png` of the capture.
        snapped: move the outlines to where the pictures change colour.
        force: replace masks that this rendered before.

    Raises:
        InputError: occupied folders, files that are not readable, an eye that no view sees.
    """
    data_root = Path(data_root)
    maps = {
        "left": Path(left or data_root / "diffuse_leye_mask.png"),
        "right": Path(right or data_root / "diffuse_reye_mask.png"),
    }
    names, camera = captures.read_poses(data_root)
    surface = objfile.read(Path(mesh_path))
    painted = torch.cat([torch.from_numpy(read_picture(maps[side], 1)) for side in SIDES], -1)
    inputs = [mesh_path, *maps.values(), *(data_root / folder for folder in ("image", "mask"))]
    with claim(data_root, "eyeball-relight render-eye-mask", force=force, inputs=inputs, names=MASKS):
        masks = []
        for i in progress(range(len(names)), "rendering masks", len(names)):
            view = Camera(camera.K, camera.world_to_camera[i], camera.width, camera.height)
            masks.append((render_map(surface, painted, view) > 0.5).numpy())
        found = np.stack(masks)
        if snapped:
            picture = captures.read_stack(data_root / "image", tuple(names), camera, 3).numpy()
            found = np.stack([snap(picture, found[..., k]) for k in range(2)], -1)
        found[..., 1] &= ~found[..., 0]
        counts = found.sum((0, 1, 2))
        if int(counts.min()) == 0:
            empty = SIDES[int(counts.argmin())]
            raise InputError(f"no view sees the white of {maps[empty]}; paint the {empty} eye white on the diffuse map")
        for i, name in enumerate(names):
            for k, folder in enumerate(MASKS):
                write_picture(data_root / folder / f"{name}.png", found[i, ..., k].astype(np.float32))
    return {"views": len(names), "left_pixels": int(counts[0]), "right_pixels": int(counts[1])}


def render_map(surface: dict[str, Tensor], painted: Tensor, view: Camera) -> Tensor:
    """Maps (N, N, C) as one view sees them on a surface: (H, W, C), averaged over 2 x 2 samples per pixel."""
    fine = view.resized(2 * view.width, 2 * view.height)
    rast = mesh.rasterize(fine.clip(surface["vertices"][None]), surface["faces"], (fine.height, fine.width))
    uv = mesh.interpolate(surface["vt"][None], rast, surface["ft"])
    values = mesh.texture(painted[None], uv, mask=rast.mask)
    return torch.nn.functional.avg_pool2d(values.permute(0, 3, 1, 2), 2)[0].permute(1, 2, 0)
