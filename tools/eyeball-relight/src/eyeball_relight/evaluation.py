"""How good an asset is: held-out pictures, and the truth of a synthetic capture."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, mesh, metrics
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.files import read_json, read_npz
from recon4d.runs import claim
from scipy.spatial import cKDTree
from torch import Tensor

from eyeball_relight import alignment, assets, brdf, captures, exports, objfile, synth, video_truth
from eyeball_relight.assets import Asset, Pixels
from eyeball_relight.captures import Capture
from eyeball_relight.exports import Lights
from eyeball_relight.pictures import read_picture, write_picture
from eyeball_relight.video_truth import VideoTruth

DENSE = 400_000  # points on a surface for distances
SHEET = 4  # held-out views in the contact sheet


def evaluate(
    asset: str | Path,
    data_root: str | Path,
    force: bool = False,
    log: Callable[[str], None] = print,
    align: bool = False,
    truth_of: str | Path | None = None,
) -> dict[str, Any]:
    """Measure an exported asset, given by its folder, on the held-out views of its capture; see `measure`.

    Writes `contact.png`, and for a synthetic capture `truth.png`, into the asset's folder.

    Args:
        align: find pose and exposure of each held-out view first; see `alignment.align`.
        truth_of: the folder of `synth --video` whose video the capture is of.
        force: replace pictures of an earlier call.

    Raises InputError for a folder that is not an asset or a capture, or is of another, and for pictures that are there.
    """
    folder = Path(asset)
    found, lights = exports.read(folder)
    capture = captures.read(data_root, log)
    truth_folder = capture.folder / "truth"
    truth = read_truth(truth_folder, capture) if (truth_folder / "truth.json").is_file() else None
    if lights.views is not None and len(lights.views.world_to_camera) == len(capture):
        capture = replace(
            capture, camera=replace(lights.views, width=capture.camera.width, height=capture.camera.height)
        )
    filmed = None
    if truth_of is not None:
        raw = captures.read(data_root, lambda text: None)
        filmed = video_truth.read(Path(truth_of), raw, capture.camera)
    names = ("contact.png", "truth.png")
    with claim(folder, "eyeball-relight metrics", force=force, inputs=[data_root, truth_of], names=names):
        aligned = aligned_views(found, lights, capture) if align else None
        if filmed is not None:
            truth = filmed_truth(filmed, capture, aligned)
        result = measure(found, lights, capture, truth, folder, aligned)
    return result if filmed is None else result | filmed.poses


Aligned = dict[int, tuple[Camera, Tensor]]  # by view, its camera and the gain (3,) of its picture


def aligned_views(asset: Asset, lights: Lights, capture: Capture) -> Aligned:
    """Camera and gain of each held-out view by the asset; see `alignment.align`."""
    out: Aligned = {}
    for i in progress(capture.held_out, "aligning"):

        def render(view: Camera, i: int = i) -> Tensor:
            return captured(asset, lights, capture, i, view, supersampling=2)[0]

        wanted, mask = capture.image[i].float() / 255, capture.mask[i] > 127
        out[i] = alignment.align(render, capture.view(i), wanted, mask)
    return out


def filmed_truth(filmed: VideoTruth, capture: Capture, aligned: Aligned | None) -> "Truth":
    """The truth of a synthetic video in a capture's held-out views.

    Brightness is known up to a factor, which is taken out of albedo by `against_truth`.
    """
    views, relit, seen = {}, {}, torch.zeros(len(filmed.asset["face"].faces), dtype=torch.bool)
    for i in capture.held_out:
        view = capture.view(i) if aligned is None else aligned[i][0]
        views[i], relit[i] = video_truth.view_truth(filmed, view)
    for i in range(len(capture)):
        seen[synth.seen_faces(filmed.asset, capture.view(i))] = True
    face = filmed.asset["face"]
    return Truth(filmed.lights, filmed.centres, filmed.radius, views, relit, face.vertices, face.faces[seen], True)


def captured(
    asset: Asset,
    lights: Lights,
    capture: Capture,
    i: int,
    view: Camera | None = None,
    gain: Tensor | None = None,
    supersampling: int = 3,
) -> tuple[Tensor, Tensor]:
    """View i as the capture's own light shows the asset: picture (H, W, 3) and coverage (H, W, 1).

    A held-out view has no occlusion of its own: that of the nearest trained camera is taken.

    Args:
        view: another camera than the capture's. gain: (3,) of linear light.
    """
    centres = capture.camera.center
    near = min(capture.trained, key=lambda j: float((centres[j] - centres[i]).norm()))
    view = capture.view(i) if view is None else view
    eye, times = view.center, torch.ones(3) if gain is None else gain

    def shade(pixels: Pixels) -> Tensor:
        room = brdf.ambient(pixels.normal, lights.ambient, lights.occlusion[near], lights.scale)
        return times * (assets.lit_by_flash(pixels, eye, lights.intensity) + pixels.diffuse * room)

    return assets.picture(asset, view, shade, supersampling)


def measure(
    asset: Asset,
    lights: Lights,
    capture: Capture,
    truth: "Truth | None",
    out: Path | None,
    aligned: Aligned | None = None,
) -> dict[str, Any]:
    """Held-out PSNR in the mask and of whole pictures, SSIM; with the truth of the capture also its errors.

    Args:
        out: folder for `contact.png` (truth, render, error times 4), or None.
        aligned: cameras and gains of the held-out views; None: the capture's cameras, and 1.

    Raises:
        InputError: an asset of another capture.
    """
    if len(lights.occlusion) != len(capture):
        raise InputError(
            f"the asset was trained on {len(lights.occlusion)} views and {capture.folder} has {len(capture)}; "
            "give the capture it was trained on"
        )
    scores: dict[str, list[float]] = {"psnr": [], "full_psnr": [], "ssim": []}
    rows = []
    for i in progress(capture.held_out, "measuring"):
        picture, _ = captured(asset, lights, capture, i, *(aligned[i] if aligned else ()))
        wanted = capture.image[i].float() / 255
        mask = (capture.mask[i] > 127).float()[None, None]
        a, b = picture.permute(2, 0, 1)[None], wanted.permute(2, 0, 1)[None]
        scores["psnr"].append(float(metrics.psnr(a, b, mask)))
        scores["full_psnr"].append(float(metrics.psnr(a, b)))
        scores["ssim"].append(float(metrics.ssim(a, b, mask)))
        rows.append(torch.cat([wanted, picture, (4 * (wanted - picture)).abs()], 0))
    result = {key: float(np.mean(values)) for key, values in scores.items()}
    if out is not None:
        write_picture(out / "contact.png", torch.cat(rows[:SHEET], 1).numpy())
    if truth is not None:
        result |= against_truth(asset, lights, capture, truth, out, aligned)
    return result


@dataclass(frozen=True, eq=False)
class Truth:
    """What synth knows of a capture, of its held-out views.

    lights: (K, 3), metres. centres: (3,) of the eyeballs, by side; radius in metres. views: by number, `part`
    (H, W), `normal` and `diffuse` (H, W, 3), linear. relit: by number, pictures (H, W, 3) under each of the lights.
    vertices (V, 3) and faces (F, 3) of the surface that pictures see. relative: albedo is known up to a factor.
    """

    lights: Tensor
    centres: dict[str, Tensor]
    radius: float
    views: dict[int, dict[str, np.ndarray]]
    relit: dict[int, list[Tensor]]
    vertices: Tensor
    faces: Tensor
    relative: bool = False


def read_truth(folder: Path, capture: Capture) -> Truth:
    """The truth of a capture. Raises InputError for files that are not those that synth wrote beside it."""
    path = folder / "truth.json"
    data = read_json(path)
    try:
        lights = np.array(data["relight"], np.float32).reshape(-1, 3)
        centres = {side: np.array(data["eyes"][f"{side}_centre"], np.float32).reshape(3) for side in ("left", "right")}
        radius = float(data["eyes"]["radius"])
        fine = bool(np.isfinite(np.concatenate([lights.ravel(), *centres.values(), [radius]])).all())
    except (KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise InputError(f"{path} is not the truth of a capture of eyeball-relight synth; make the capture again")
    size = (capture.camera.height, capture.camera.width)
    views, relit = {}, {}
    for i in capture.held_out:
        views[i] = _truth_of(folder / "views" / f"{i:04d}.npz", size)
        relit[i] = [_relit(folder / "views" / f"{i:04d}_relit{k}.png", size) for k in range(len(lights))]
    surface = objfile.read(folder / "face.obj")
    seen = read_npz(folder / "seen.npz").get("faces", np.zeros(0))
    if seen.shape != surface["faces"].shape[:1] or seen.dtype != bool or not seen.any():
        raise InputError(f"{folder / 'seen.npz'} is not of face.obj beside it; make the capture again")
    return Truth(
        torch.from_numpy(lights),
        {side: torch.from_numpy(centre) for side, centre in centres.items()},
        radius,
        views,
        relit,
        surface["vertices"],
        surface["faces"][torch.from_numpy(seen)],
    )


def _truth_of(path: Path, size: tuple[int, int]) -> dict[str, np.ndarray]:
    arrays = read_npz(path)
    for name, shape in (("part", ()), ("normal", (3,)), ("diffuse", (3,))):
        values = arrays.get(name, np.zeros(0))
        if values.shape != (*size, *shape) or values.dtype.kind not in "uf":
            raise InputError(f"{path} is not the truth of a view of eyeball-relight synth; make the capture again")
    return arrays


def _relit(path: Path, size: tuple[int, int]) -> Tensor:
    picture = read_picture(path, 3)
    if picture.shape != (*size, 3):
        raise InputError(f"{path} is not of the size of the capture's pictures; make the capture again")
    return torch.from_numpy(picture)


def against_truth(
    asset: Asset, lights: Lights, capture: Capture, truth: Truth, out: Path | None, aligned: Aligned | None = None
) -> dict[str, Any]:
    """Errors against a synthetic capture's truth.

    normal_deg: median angle on skin in held-out views. albedo_error: mean absolute error of the diffuse albedo there,
    linear, in [0, 1]. relit_psnr: held-out views under lights off the camera, in the mask. chamfer_mm: mean distance
    between the surfaces that pictures see, both ways averaged. eye_centre_mm, eye_radius_mm: the larger of both eyes.
    """
    angles, pairs, relit, rows = [], [], [], []
    for i in capture.held_out:
        view, arrays = aligned[i][0] if aligned else capture.view(i), truth.views[i]
        pixels = assets.visible(asset, view)
        part = pixels.image(pixels.part[:, None] + 1.0)[..., 0]
        skin = torch.from_numpy(arrays["part"] == 1) & (part == 1) & (capture.hair[i] < 128)
        normal, true_normal = pixels.image(pixels.normal), torch.from_numpy(arrays["normal"]).float()
        cosine = (normal * true_normal).sum(-1)[skin] / true_normal.norm(dim=-1)[skin].clamp(min=1e-6)
        angles.append(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))
        pairs.append((pixels.image(pixels.diffuse)[skin], torch.from_numpy(arrays["diffuse"]).float()[skin]))
        mask = (capture.mask[i] > 127).float()[None, None]
        for light, wanted in zip(truth.lights, truth.relit[i]):
            picture, _ = assets.picture(
                asset,
                view,
                partial(
                    assets.lit_by_point,
                    asset=asset,
                    eye=view.center,
                    light=light,
                    intensity=lights.intensity,
                ),
                3,
            )
            relit.append(float(metrics.psnr(picture.permute(2, 0, 1)[None], wanted.permute(2, 0, 1)[None], mask)))
            rows.append(torch.cat([wanted, picture], 0))
        rows.append(torch.cat([(true_normal + 1) / 2, (normal + 1) / 2], 0))
        rows.append(
            torch.cat(
                [
                    brdf.to_picture(torch.from_numpy(arrays["diffuse"]).float()),
                    brdf.to_picture(pixels.image(pixels.diffuse)),
                ],
                0,
            )
        )
    found, wanted = (torch.cat(values) for values in zip(*pairs))
    factor = float((wanted.sum(1) / found.sum(1).clamp(min=1e-6)).median()) if truth.relative and len(found) else 1.0
    if out is not None:
        write_picture(out / "truth.png", torch.cat(rows[: 2 * (len(truth.lights) + 2)], 1).numpy())
    face = asset["face"]
    # dense enough that the distance to the nearest point is that to the surface, to a quarter of a millimetre
    ours = surface_points(face.vertices, face.faces, 0, DENSE)
    theirs = surface_points(truth.vertices, truth.faces, 0, DENSE)
    there, _ = cKDTree(ours).query(theirs[::20])
    back, _ = cKDTree(theirs).query(ours[::20])
    result = {
        "normal_deg": float(torch.cat(angles).median()),
        "albedo_error": float((factor * found - wanted).abs().mean()),
        "relit_psnr": float(np.mean(relit)),
        "chamfer_mm": float(500 * (there.mean() + back.mean())),
        "truth_to_mesh_mm": float(1000 * there.mean()),
    }
    if truth.relative:
        result["albedo_factor"] = factor
    centres, radii = [], []
    for side in ("left", "right"):
        if side in asset:
            vertices = asset[side].vertices
            middle = (vertices.amin(0) + vertices.amax(0)) / 2
            radius = (vertices - middle).norm(dim=1).mean()
            centres.append(1000 * float((middle - truth.centres[side]).norm()))
            radii.append(1000 * abs(float(radius) - truth.radius))
    if centres:
        result |= {"eye_centre_mm": max(centres), "eye_radius_mm": max(radii)}
    return result


def surface_points(vertices: Tensor, faces: Tensor, seed: int, n: int) -> np.ndarray:
    """n points (n, 3) spread evenly over triangles."""
    corners = vertices[faces]
    area = mesh.face_normals(vertices, faces, unit=False).norm(dim=1)
    generator = torch.Generator().manual_seed(seed)
    face = torch.multinomial(area, n, replacement=True, generator=generator)
    a, b = torch.rand(2, n, 1, generator=generator)
    flip = a + b > 1
    a, b = torch.where(flip, 1 - a, a), torch.where(flip, 1 - b, b)
    p, q, r = corners[face].unbind(1)
    return (p + a * (q - p) + b * (r - p)).numpy()
