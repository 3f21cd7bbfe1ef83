"""A flash capture of the head model with everything known: geometry, material, eyeballs, light."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from recon4d import InputError, cameras, mesh
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.color import linear_from_srgb
from recon4d.files import write_npz, write_text
from recon4d.head import HeadModel, load, with_uv
from recon4d.runs import claim
from recon4d.synthetic import random_albedo, smooth_noise
from torch import Tensor

from eyeball_relight import assets, captures, objfile
from eyeball_relight.assets import Asset, Pixels, Surface
from eyeball_relight.pictures import write_picture

DISTANCE = 0.45  # metres from the head's middle to the camera
BOUND = 0.19  # half the side of the cube that holds the head, metres
INTENSITY = 1.15 * math.pi * DISTANCE**2  # a white surface that faces the camera is a little over-exposed
SUPERSAMPLING = 4
EYE_SIZE = 256  # texels per side of an eyeball's map
REGIONS = {"left_eye", "right_eye", "scalp", "lips", "face"}  # of the head, by which materials are given
IRIS, PUPIL, LIMBUS = 0.36, 0.14, 0.05  # radians from the line of sight; width of the dark rim
RELIGHT = ((-0.25, 0.15, 0.35), (0.3, 0.25, 0.3), (0.0, -0.3, 0.35))  # light positions, metres, for relighting


def head_asset(head: HeadModel, seed: int) -> tuple[Asset, dict[str, Any]]:
    """A random person with two exactly spherical eyeballs, as an asset; and the eyes' centres and their radius.

    The origin is the middle of the head.
    """
    regions, vt, ft = head.regions, head.vt, head.ft
    if regions is None or vt is None or ft is None or not set(regions) >= REGIONS:
        raise InputError(f"{head.name} does not say which vertices are {', '.join(sorted(REGIONS))}; use the open head")
    rng = np.random.default_rng((seed, 5))
    shape = torch.from_numpy((0.6 * rng.standard_normal(head.n_shape)).astype(np.float32))[None]
    vertices = head(shape)[0]
    vertices = vertices - (vertices.amin(0) + vertices.amax(0)) / 2
    eyes = regions["left_eye"] | regions["right_eye"]
    skin = ~eyes[head.faces].any(1)
    centres, radii = [], []
    for name in ("left_eye", "right_eye"):
        centres.append(vertices[regions[name]].mean(0))
        radii.append((vertices[regions[name]] - centres[-1]).norm(dim=1).mean())
    radius = float(torch.stack(radii).mean())

    albedo = linear_from_srgb(random_albedo(head, seed))
    gloss = baked(head, vertex_gloss(regions, vertices), len(albedo))
    face = Surface(
        vertices,
        mesh.vertex_normals(vertices, head.faces[skin]),
        head.faces[skin],
        vt,
        ft[skin],
        albedo,
        gloss[..., :1],
        gloss[..., 1:],
    )
    balls = {
        part: assets.eyeball(centre, radius, iris_texture(seed)) for part, centre in zip(("left", "right"), centres)
    }
    truth = {"left_centre": centres[0].tolist(), "right_centre": centres[1].tolist(), "radius": radius}
    return {"face": face, **balls}, truth


def vertex_gloss(regions: dict[str, Tensor], vertices: Tensor) -> Tensor:
    """Specular and roughness (V, 2): oily where skin is on forehead and nose, wet lips, matt hair."""
    x, y, _ = (vertices - vertices[regions["face"]].mean(0)).unbind(1)
    oily = torch.exp(-((x / 0.03) ** 2) - ((y - 0.02) / 0.06) ** 2)
    specular, roughness = 0.3 + 0.25 * oily, 0.6 - 0.15 * oily
    lips, scalp = regions["lips"], regions["scalp"]
    specular = torch.where(lips, 0.5, torch.where(scalp, 0.0, specular))
    roughness = torch.where(lips, 0.4, torch.where(scalp, 0.8, roughness))
    return torch.stack([specular, roughness], 1)


def baked(head: HeadModel, values: Tensor, size: int) -> Tensor:
    """Values (V, C) at a head's vertices as a map (size, size, C). Raises ValueError without texture coordinates."""
    if head.vt is None or head.ft is None:
        raise ValueError(f"{head.name} has no texture coordinates")
    texels = mesh.bake_uv(head.vt, head.ft, (size, size))
    return mesh.fill_gutter(texels.interpolate(values, head.faces), texels.mask)


def iris_texture(seed: int) -> Tensor:
    """Linear colour (N, N, 3) of an eyeball that looks along +z: sclera, limbus, iris, pupil."""
    rng = np.random.default_rng((seed, 6))
    colour = torch.tensor([[0.10, 0.05, 0.02], [0.05, 0.11, 0.20], [0.07, 0.11, 0.05]])[int(rng.integers(3))]
    axis = (torch.arange(EYE_SIZE) + 0.5) / EYE_SIZE
    v, u = torch.meshgrid(1 - axis, axis, indexing="ij")
    towards = assets.sphere_direction(torch.stack([u, v], -1))
    angle = torch.acos(towards[..., 2].clamp(-1, 1))
    turn = torch.atan2(towards[..., 1], towards[..., 0])
    fibres = torch.from_numpy(smooth_noise(1024, 40, rng)[0].astype(np.float32))
    fibre = fibres[((turn / (2 * math.pi) + 0.5) * 1023).long()]
    iris = colour * (1 + 0.25 * fibre + 0.5 * (angle - PUPIL) / IRIS)[..., None]
    sclera = torch.tensor([0.70, 0.66, 0.63]) * (1 - 0.15 * (angle / math.pi))[..., None]

    def step(edge: float, width: float = 0.02) -> Tensor:
        return torch.sigmoid((angle - edge) / width * 4)[..., None]

    inside = 0.01 * (1 - step(PUPIL)) + iris * step(PUPIL)
    rim = 1 - 0.6 * torch.exp(-(((angle - IRIS) / LIMBUS) ** 2))[..., None]
    return ((inside * (1 - step(IRIS)) + sclera * step(IRIS)) * rim).clamp(0, 1)


def orbit(n: int, size: int, seed: int) -> Camera:
    """n cameras on a path in front of the head, in rows from the forehead to the chin and back and forth."""
    rng = np.random.default_rng((seed, 7))
    rows = max(1, round(math.sqrt(n / 3)))
    s = (np.arange(n) + 0.5) / n * rows
    row, along = np.floor(s), s % 1
    yaw = np.radians(66) * (2 * np.where(row % 2 == 0, along, 1 - along) - 1) + rng.normal(0, 0.03, n)
    pitch = np.radians(np.interp(s, [0, rows], [32, -24])) + rng.normal(0, 0.03, n)
    distance = DISTANCE * (1 + rng.uniform(-0.06, 0.06, n))
    towards = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], 1)
    eye = torch.from_numpy(distance[:, None] * towards).float()
    target = torch.from_numpy(rng.normal(0, 0.008, (n, 3))).float()
    roll = roma.rotvec_to_rotmat(torch.from_numpy(rng.normal(0, 0.05, (n, 1)) * [[0.0, 0.0, 1.0]]).float())
    pose = cameras.look_at(eye, target, torch.tensor([0.0, 1, 0]).expand(n, 3))
    pose[:, :3] = roll @ pose[:, :3]
    K = cameras.intrinsics_from_fov(math.radians(41), size, size)
    return Camera(K, pose, size, size)


def room_light(seed: int) -> Tensor:
    """Dim ambient radiance (9, 3), for `mesh.sh_irradiance`."""
    rng = np.random.default_rng((seed, 8))
    light = torch.zeros(9, 3)
    light[0] = 0.045 * (4 * math.pi) ** 0.5
    light[1:4] = torch.from_numpy(rng.uniform(-0.03, 0.03, (3, 1)).astype(np.float32))
    return light * torch.tensor([1.0, 0.93, 0.85])


def photographer(normals: Tensor, backward: Tensor) -> Tensor:
    """Share (N, 1) of the room's light left where somebody stands behind the camera, which is along `backward` (3,)."""
    return 1 - 0.5 * (normals @ backward).clamp(min=0)[:, None] ** 2


def synthesise(
    folder: str | Path,
    frames: int = 40,
    size: int = 256,
    light_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    head_model: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write a capture of the head model and its truth into `folder`; returns a summary.

    Args:
        size: pixels per side.
        light_offset: metres, where the flash is in the camera's axes.
        head_model: another head with regions; None is the open head.
        force: replace an earlier capture of this command.

    Raises:
        InputError: an occupied folder, a head without regions.
    """
    head = with_uv(load(head_model))
    asset, eyes = head_asset(head, seed)
    with claim(folder, "eyeball-relight synth", force=force, inputs=[head_model]):
        return _write(Path(folder), head, asset, eyes, frames, size, light_offset, seed)


def _write(
    folder: Path,
    head: HeadModel,
    asset: Asset,
    eyes: dict[str, Any],
    frames: int,
    size: int,
    light_offset: tuple[float, float, float],
    seed: int,
) -> dict[str, Any]:
    camera, room = orbit(frames, size, seed), room_light(seed)
    intensity = torch.full((3,), INTENSITY)
    offset = torch.tensor(light_offset)
    files = [f"image/{i:04d}.png" for i in range(frames)]
    captures.write_poses(folder, files, camera)
    scalp = baked(head, (head.regions or {})["scalp"].float()[:, None], len(asset["face"].diffuse))
    seen = torch.zeros(len(asset["face"].faces), dtype=torch.bool)
    for i in progress(range(frames), "rendering", frames):
        view = Camera(camera.K, camera.world_to_camera[i], size, size)
        eye, turn = view.center, view.world_to_camera[:3, :3]

        def shade(pixels: Pixels, eye: Tensor = eye, turn: Tensor = turn) -> Tensor:
            if bool(offset.any()):
                flash = assets.lit_by_point(pixels, asset, eye, eye + turn.T @ offset, intensity)
            else:
                flash = assets.lit_by_flash(pixels, eye, intensity)
            dim = photographer(pixels.normal, -turn[2])
            return flash + pixels.diffuse * mesh.sh_irradiance(pixels.normal[None], room)[0].clamp(min=0) * dim

        picture, coverage = assets.picture(asset, view, shade, SUPERSAMPLING)
        name = f"{i:04d}.png"
        write_picture(folder / "image" / name, picture)
        write_picture(folder / "mask" / name, coverage)
        labels = part_coverage(asset, scalp, view)
        for k, where in enumerate(("hair_mask", "leye_mask", "reye_mask")):
            write_picture(folder / where / name, labels[..., k] > 0.5)
            if k:
                write_picture(folder / "truth" / where / name, labels[..., k] > 0.5)
        write_truth(folder / "truth" / "views", name, asset, view, intensity, relit=i in captures.held_out(frames))
        seen[seen_faces(asset, view)] = True
    for part, surface in asset.items():
        objfile.write(folder / "truth" / f"{part}.obj", surface)
    write_npz(folder / "truth" / "seen.npz", faces=seen.numpy())
    summary = {"frames": frames, "size": size, "seed": seed, "light_offset": list(light_offset)}
    lights = {"intensity": INTENSITY, "relight": RELIGHT}
    write_text(folder / "truth" / "truth.json", json.dumps(summary | {"eyes": eyes} | lights, indent=2) + "\n")
    config = f"data:\n  bound: {BOUND}\nlight:\n  intensity: {INTENSITY:.6f}\neyes:\n  radius: [0.012, 0.02]\n"
    write_text(folder / "config.yaml", config)
    write_text(folder / "config_wo-hybrid.yaml", config + "  enabled: false\n")
    return summary | {"folder": str(folder)} | eyes


def part_coverage(asset: Asset, scalp: Tensor, view: Camera) -> Tensor:
    """Shares (H, W, 3) of each pixel that see hair, the left and the right eyeball."""
    fine = view.resized(view.width * SUPERSAMPLING, view.height * SUPERSAMPLING)
    face = asset["face"]
    labelled = asset | {"face": Surface(**(vars(face) | {"specular": scalp, "roughness": scalp}))}
    pixels = assets.visible(labelled, fine)
    hair = (pixels.part == 0) * pixels.specular[:, 0]
    values = torch.stack([hair, (pixels.part == 1).float(), (pixels.part == 2).float()], 1)
    return torch.nn.functional.avg_pool2d(pixels.image(values).permute(2, 0, 1)[None], SUPERSAMPLING)[0].permute(
        1, 2, 0
    )


def write_truth(folder: Path, name: str, asset: Asset, view: Camera, intensity: Tensor, relit: bool) -> None:
    """Normals, diffuse albedo and parts as seen by one view; and the view under the lights of RELIGHT."""
    pixels = assets.visible(asset, view)
    stem = Path(name).stem
    write_npz(
        folder / f"{stem}.npz",
        part=pixels.image(pixels.part[:, None] + 1.0).to(torch.uint8).numpy()[..., 0],  # 0 background, 1 face, 2, 3
        normal=pixels.image(pixels.normal).half().numpy(),
        diffuse=pixels.image(pixels.diffuse).half().numpy(),
    )
    for k, light in enumerate(RELIGHT if relit else ()):
        picture, _ = assets.picture(
            asset,
            view,
            partial(assets.lit_by_point, asset=asset, eye=view.center, light=torch.tensor(light), intensity=intensity),
            SUPERSAMPLING,
        )
        write_picture(folder / f"{stem}_relit{k}.png", picture)


def seen_faces(asset: Asset, view: Camera) -> Tensor:
    """Triangles of the face surface that a view sees."""
    offset, faces = 0, []
    for surface in asset.values():
        faces.append(surface.faces + offset)
        offset += len(surface.vertices)
    vertices = torch.cat([s.vertices for s in asset.values()])
    ids = mesh.visibility(view.clip(vertices[None]), torch.cat(faces), (view.height, view.width))[0].unique()
    found: Tensor = ids[(ids >= 0) & (ids < len(asset["face"].faces))].long()
    return found
