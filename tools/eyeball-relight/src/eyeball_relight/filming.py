"""A phone video of the head model with the flash on, and its truth: as hard as what people film.

The camera is carried round the head by hand, in about 20 seconds. Exposure and white balance wander, the shutter
blurs, the sensor has noise, the room is not quite dark. The person blinks and cannot keep the face quite still, has
hair, and eyes whose corneas bulge. The video is H.264.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from recon4d import cameras, mesh, video
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.files import write_npz, write_text
from recon4d.head import HeadModel, load, with_uv
from recon4d.runs import claim
from recon4d.synthetic import smooth_noise, wall
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import assets, brdf, synth
from eyeball_relight.assets import Asset, Pixels, Surface

SECONDS = 20.0
SHUTTER = 1 / 60  # seconds
SUPERSAMPLING = 2
STRANDS, STRAND, LENGTH, WIDTH = 2500, 4, 0.035, 0.003  # cards of hair, their segments, metres
CORNEA = 0.07  # of the eyeball's radius; how far its cornea stands out
SHOT, READ = 4e-4, 2e-3  # linear; noise of light and of the sensor
WANDER, TINT = 0.12, 0.03  # of the logarithm of exposure, and of its channels
QUALITY = 21  # of H.264


def bulging(ball: Surface) -> Surface:
    """An eyeball whose cornea stands out along +z, with the normals that go with it."""
    centre = (ball.vertices.amin(0) + ball.vertices.amax(0)) / 2
    angle = torch.acos(ball.normals[:, 2].clamp(-1, 1))
    share = (1 - (angle / (1.25 * synth.IRIS)) ** 2).clamp(min=0)
    vertices = centre + (ball.vertices - centre) * (1 + CORNEA * share * (2 - share))[:, None]
    return replace(ball, vertices=vertices, normals=mesh.vertex_normals(vertices, ball.faces))


def hair(surface: Surface, head: HeadModel, seed: int) -> Surface:
    """The face with hair: cards that grow out of the scalp and fall, with the colour of the skin they grow from."""
    rng = np.random.default_rng((seed, 11))
    regions = head.regions or {}
    inside = regions["scalp"][surface.faces].all(1).nonzero()[:, 0]
    areas = mesh.face_normals(surface.vertices, surface.faces[inside], unit=False).norm(dim=1).numpy()
    face = inside[torch.from_numpy(rng.choice(len(inside), STRANDS, p=areas / areas.sum()))]
    shares = torch.from_numpy(rng.dirichlet(np.ones(3), STRANDS).astype(np.float32))[..., None]
    root = (surface.vertices[surface.faces[face]] * shares).sum(1)
    out = normalize((surface.normals[surface.faces[face]] * shares).sum(1), dim=1)
    uv = (surface.vt[surface.ft[face]] * shares).sum(1)
    comb = torch.from_numpy(rng.normal([0, -0.35, -0.55], 0.25, (STRANDS, 3)).astype(np.float32))
    lie = normalize(comb - 0.85 * (comb * out).sum(1, keepdim=True) * out, dim=1)
    side = normalize(torch.linalg.cross(lie, out), dim=1) * WIDTH / 2
    length = torch.from_numpy(rng.uniform(0.5, 1.0, (STRANDS, 1)).astype(np.float32)) * LENGTH
    vertices, normals = [], []
    for k in range(STRAND + 1):
        along = k / STRAND
        point = root + length * along * (lie + (0.5 * (1 - along) + 0.12) * out)
        vertices += [point - side * (1 - 0.6 * along), point + side * (1 - 0.6 * along)]
        normals += [normalize(out + 0.2 * side / WIDTH, dim=1), normalize(out - 0.2 * side / WIDTH, dim=1)]
    start = len(surface.vertices) + torch.arange(STRANDS)
    quads = []
    for k in range(STRAND):
        a, b, c, d = (start + (2 * k + j) * STRANDS for j in (0, 1, 3, 2))
        quads += [torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)]
    faces = torch.cat(quads)
    shift = len(surface.vt) - len(surface.vertices)
    return replace(
        surface,
        vertices=torch.cat([surface.vertices, *vertices]),
        normals=torch.cat([surface.normals, *normals]),
        faces=torch.cat([surface.faces, faces]),
        vt=torch.cat([surface.vt, uv.repeat(2 * (STRAND + 1), 1)]),
        ft=torch.cat([surface.ft, faces + shift]),
    )


def person(head: HeadModel, seed: int) -> tuple[Asset, dict[str, Any]]:
    """A random person at rest as `synth.head_asset`, with hair of a colour and corneas; and the eyes' truth."""
    asset, truth = synth.head_asset(head, seed)
    rng = np.random.default_rng((seed, 12))
    face = asset["face"]
    scalp = synth.baked(head, (head.regions or {})["scalp"].float()[:, None], len(face.diffuse))
    colours = torch.tensor([[0.015, 0.010, 0.008], [0.06, 0.03, 0.015], [0.20, 0.12, 0.06], [0.25, 0.24, 0.23]])
    colour = colours[int(rng.integers(len(colours)))]
    fleck = torch.from_numpy(rng.uniform(0.6, 1.4, (*scalp.shape[:2], 1)).astype(np.float32))
    tone = person_tone(seed)
    diffuse = face.diffuse * torch.tensor([tone**0.8, tone, tone**1.1])
    face = replace(face, diffuse=torch.lerp(diffuse, colour * fleck, scalp))
    balls = {part: bulging(asset[part]) for part in ("left", "right")}
    return {"face": face, **balls}, truth


def person_tone(seed: int) -> float:
    """How light a person's skin is, 1 being the head model's own."""
    return float(np.random.default_rng((seed, 16)).uniform(0.3, 1.0))


def path(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a hand-held camera is and looks at each of n moments: eye and target (n, 3), metres."""
    rng = np.random.default_rng((seed, 13))
    s = np.arange(n) / max(n - 1, 1)
    shake = smooth_noise(n, 14, rng, 6)
    yaw = np.radians(55) * np.sin(2 * np.pi * 1.5 * s) + 0.02 * shake[0]
    pitch = np.radians(4 + 18 * np.cos(2 * np.pi * 1.1 * s + 0.4)) + 0.015 * shake[1]
    distance = 0.5 * (1 + 0.04 * shake[2])
    towards = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], 1)
    target = np.stack([0.01 * shake[3], 0.01 * shake[4] + 0.005, 0 * s], 1)
    return distance[:, None] * towards, target


def film(
    folder: str | Path,
    frames: int = 300,
    size: int = 384,
    light_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    head_model: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write `video.mp4` of a head, 20 seconds of `frames` frames, and `truth/`; returns a summary.

    Args as `synth.synthesise`.

    Raises:
        InputError: an occupied folder, a head without regions.
    """
    head = with_uv(load(head_model))
    asset, eyes = person(head, seed)
    with claim(folder, "eyeball-relight synth", force=force, inputs=[head_model]):
        return _film(Path(folder), head, asset, eyes, frames, size, light_offset, seed)


def poses(eye: np.ndarray, target: np.ndarray, seed: int) -> Tensor:
    """World-to-camera (N, 4, 4) of a camera at `eye` (N, 3) that looks at `target`, held a little askew."""
    n = len(eye)
    up = torch.tensor([0.0, 1.0, 0.0]).expand(n, 3)
    pose = cameras.look_at(torch.from_numpy(eye).float(), torch.from_numpy(target).float(), up)
    askew = 0.05 * smooth_noise(n, 5, np.random.default_rng((seed, 14)))[0][:, None] * [[0.0, 0.0, 1.0]]
    pose[:, :3] = roma.rotvec_to_rotmat(torch.from_numpy(askew).float()) @ pose[:, :3]
    return pose


def _film(
    folder: Path,
    head: HeadModel,
    asset: Asset,
    eyes: dict[str, Any],
    frames: int,
    size: int,
    light_offset: tuple[float, float, float],
    seed: int,
) -> dict[str, Any]:
    rng = np.random.default_rng((seed, 15))
    fps = frames / SECONDS
    pose = poses(*path(frames, size, seed), seed)
    # what the hand does while the shutter is open
    turn = torch.cat([pose[:1, :3, :3], pose[:-1, :3, :3]])
    speed = roma.rotmat_to_rotvec(pose[:, :3, :3] @ turn.transpose(1, 2)) * fps * SHUTTER
    K = cameras.intrinsics_from_fov(math.radians(43), size, size)
    room, intensity, offset = synth.room_light(seed), torch.full((3,), synth.INTENSITY), torch.tensor(light_offset)
    gain = np.exp(WANDER * smooth_noise(frames, 3, rng) + TINT * smooth_noise(frames, 3, rng, 3)).T
    gain *= np.exp(-np.log(gain).mean())
    mimic = torch.from_numpy(_mimic(head, frames, rng))
    lids = torch.from_numpy(blinks(frames, fps, rng))
    shape = torch.from_numpy((0.6 * np.random.default_rng((seed, 5)).standard_normal(head.n_shape)).astype(np.float32))
    rest = head(shape[None])[0]
    behind = torch.from_numpy(wall(2 * size, seed)).float() ** brdf.GAMMA

    def shot(i: int) -> np.ndarray:
        posed = head(shape[None], mimic[i : i + 1], eyelids=lids[i : i + 1] if head.eyelids is not None else None)[0]
        face = asset["face"]
        vertices = face.vertices + posed - rest
        moved = replace(face, vertices=vertices, normals=mesh.vertex_normals(vertices, face.faces))
        scene = asset | {"face": hair(moved, head, seed)}
        light = torch.zeros(size, size, 3)
        for share in (-0.25, 0.25):
            blurred = pose[i].clone()
            blurred[:3] = roma.rotvec_to_rotmat(share * speed[i]) @ blurred[:3]
            view = Camera(K, blurred, size, size)
            colour, cover = _linear(scene, view, offset, intensity, room)
            light += 0.5 * (colour + (1 - cover) * _wall(behind, view))
        return _sensor(light.numpy() * gain[i], rng)

    written = video.write_mp4(
        folder / "video.mp4", (shot(i) for i in progress(range(frames), "filming", frames)), fps, quality=QUALITY
    )
    write_npz(
        folder / "truth" / "poses.npz",
        names=np.array([f"{i:05d}" for i in range(frames)]),
        world_to_camera=pose.double().numpy(),
        K=K.numpy(),
        gain=gain,
        eyelids=lids.numpy(),
    )
    summary = {"frames": written, "size": size, "seed": seed, "fps": fps, "light_offset": list(light_offset)}
    lights = {"intensity": synth.INTENSITY, "relight": synth.RELIGHT, "head_model": head.name}
    write_text(folder / "truth" / "truth.json", json.dumps(summary | {"eyes": eyes} | lights, indent=2) + "\n")
    return summary | {"video": str(folder / "video.mp4")} | eyes


def _linear(scene: Asset, view: Camera, offset: Tensor, intensity: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Light (H, W, 3) of the scene and its coverage (H, W, 1)."""
    fine = view.resized(view.width * SUPERSAMPLING, view.height * SUPERSAMPLING)
    pixels = assets.visible(scene, fine)
    lit = _lit(pixels, scene, view, offset, intensity, room)
    values = pixels.image(torch.cat([lit, torch.ones(len(lit), 1)], 1)).permute(2, 0, 1)[None]
    mean = torch.nn.functional.avg_pool2d(values, SUPERSAMPLING)[0].permute(1, 2, 0)
    return mean[..., :3], mean[..., 3:]


def _lit(pixels: Pixels, scene: Asset, view: Camera, offset: Tensor, intensity: Tensor, room: Tensor) -> Tensor:
    turn = view.world_to_camera[:3, :3]
    if bool(offset.any()):
        flash = assets.lit_by_point(pixels, scene, view.center, view.center + turn.T @ offset, intensity)
    else:
        flash = assets.lit_by_flash(pixels, view.center, intensity)
    dim = synth.photographer(pixels.normal, -turn[2])
    return flash + pixels.diffuse * mesh.sh_irradiance(pixels.normal[None], room)[0].clamp(min=0) * dim


def _wall(behind: Tensor, view: Camera) -> Tensor:
    """A dim wall (H, W, 3) that slides past behind the head as the camera turns."""
    size = view.width
    away = -view.world_to_camera[2, :3]
    column = int(((float(torch.atan2(away[0], away[2])) / 2.4) + 0.5) * size)
    row = int((float(torch.asin(away[1].clamp(-1, 1))) / 2.4 + 0.5) * size)
    column, row = (min(max(x, 0), size) for x in (column, row))
    return 0.05 * behind[row : row + size, column : column + size]


def _mimic(head: HeadModel, n: int, rng: np.random.Generator) -> np.ndarray:
    """Small expressions (N, E): a few that come and go, none of them the eyes'."""
    out = np.zeros((n, head.n_expression), np.float32)
    usable = [i for i, name in enumerate(head.expression_names) if not name.startswith(("eye", "tongue", "jaw"))]
    for i in rng.choice(usable or head.n_expression, 6, replace=False):
        out[:, i] = 0.5 * (smooth_noise(n, 4, rng)[0] - 1.0).clip(0, 1)
    return out


def blinks(n: int, fps: float, rng: np.random.Generator) -> np.ndarray:
    """Eyelids (N, 2): closed for about a fifth of a second, every four seconds."""
    time, out = np.arange(n) / fps, np.zeros(n)
    for at in np.arange(2.0, SECONDS, 4.0) + rng.uniform(-1, 1, len(np.arange(2.0, SECONDS, 4.0))):
        out = np.maximum(out, np.exp(-(((time - at) / 0.1) ** 2)))
    return np.stack([out, out], 1).astype(np.float32)


def _sensor(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An 8-bit picture of light (H, W, 3), with noise."""
    noise = np.sqrt(SHOT * light.clip(0) + READ**2) * rng.standard_normal(light.shape)
    picture: np.ndarray = ((light + noise).clip(0, 1) ** (1 / brdf.GAMMA) * 255 + 0.5).astype(np.uint8)
    return picture
