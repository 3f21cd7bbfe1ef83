"""Whether pictures of a still head look lit from the camera: a test before training, on a coarse mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recon4d import mesh
from recon4d.cameras import Camera
from recon4d.head import HeadModel
from scipy.optimize import least_squares
from torch import Tensor

from eyeball_relight import brdf
from eyeball_relight.flash import LIGHT_TOLERANCE

POINTS = 600  # of the mesh that are looked at
DARK, BRIGHT = 0.015, 0.9  # linear; outside of these a pixel says little
FRONTAL = 0.35  # cosine from which a point is seen well
SWEEPS = 6
CLEARER = 0.8  # of the error that is left where the light may be elsewhere: below it the light is elsewhere
ROOM = 0.5  # share of the light from which the flash is not what lights the face
FLOOR = 0.1  # of the residual's scale: fitted shapes are a few per cent off anyway


@dataclass(frozen=True)
class Seen:
    """offset: of the light in the camera's axes, metres. distance: from head to camera. room: the share of the light
    that is the same from all sides. error: left over, of the logarithm of brightness; at_camera: with the light at
    the camera."""

    offset: list[float]
    distance: float
    room: float
    error: float
    at_camera: float


def look(
    pictures: np.ndarray, masks: np.ndarray, hair: np.ndarray, camera: Camera, head: HeadModel, still: Tensor
) -> Seen | None:
    """Where the light seems to be; None where too little is seen.

    A matt point of albedo a and normal n lit by one light l that goes with the camera, and by the room, has the
    brightness a (s n.(l - x) / |l - x|^3 + r) times the picture's exposure. Albedos and exposures are what is left of
    the logarithms' means over views and over points; l and r are fitted.

    Args:
        pictures: (N, H, W, 3). masks: (N, H, W). hair: (N, H, W) bool. still: (V, 3) vertices.
    """
    regions = head.regions or {}
    wanted = regions.get("face", torch.ones(len(still), dtype=torch.bool)).clone()
    for name in ("eyes", "lips", "mouth_interior", "scalp"):
        if name in regions:
            wanted &= ~regions[name]
    some = wanted.nonzero()[:, 0]
    some = some[:: max(1, len(some) // POINTS)]
    x = still[some].double().numpy()
    n = mesh.vertex_normals(still, head.faces)[some].double().numpy()
    bright, to_light = np.full((len(pictures), len(some)), np.nan), np.zeros((len(pictures), 3, 3))
    centres = camera.center.double().numpy()
    for i in range(len(pictures)):
        view = Camera(camera.K.float(), camera.world_to_camera[i].float(), camera.width, camera.height)
        ids = mesh.visibility(view.clip(still[None].float()), head.faces, (view.height, view.width))[0].unique()
        front = torch.zeros(len(still), dtype=torch.bool)
        front[head.faces[ids[ids >= 0].long()].flatten()] = True
        at, _ = view.project(still[some].float())
        column, row = (at[:, k].long().clamp(0, side - 1) for k, side in ((0, view.width), (1, view.height)))
        r, c = row.numpy(), column.numpy()
        linear = brdf.to_linear(torch.from_numpy(pictures[i, r, c] / 255)).mean(-1).numpy()
        away = centres[i] - x
        cosine = (away * n).sum(1) / np.linalg.norm(away, axis=1)
        fine = front[some].numpy() & (masks[i, r, c] > 250) & ~hair[i, r, c] & (cosine > FRONTAL)
        bright[i] = np.where(fine & (linear > DARK) & (linear < BRIGHT), linear, np.nan)
        to_light[i] = view.world_to_camera[:3, :3].double().numpy().T  # from the camera's axes to the head's
    kept = np.isfinite(bright).sum(0) >= 3
    if kept.sum() < 30 or len(pictures) < 4:
        return None
    x, n, log = x[kept], n[kept], np.log(bright[:, kept])
    there = np.isfinite(log)
    distance = float(np.median(np.linalg.norm(centres, axis=1)))

    def left_over(p: np.ndarray) -> np.ndarray:
        light = centres[:, None] + (to_light @ (p[:3] * distance))[:, None]
        away = light - x
        length = np.linalg.norm(away, axis=-1)
        direct = ((away * n).sum(-1) / length).clip(0.02) * (distance / length) ** 2
        rest = np.where(there, log - np.log((1 - p[3]) * direct + p[3]), 0.0)
        for _ in range(SWEEPS):  # take out albedos and exposures
            rest = np.where(there, rest - rest.sum(0) / there.sum(0).clip(1), 0.0)
            rest = np.where(there, rest - rest.sum(1, keepdims=True) / there.sum(1, keepdims=True).clip(1), 0.0)
        return rest[there]

    def fit(f: Callable[[np.ndarray], np.ndarray], start: list[float], low: list[float], high: list[float]) -> Any:
        return least_squares(f, start, bounds=(low, high), loss="soft_l1", f_scale=FLOOR, max_nfev=30)

    fixed = fit(lambda p: left_over(np.array([0, 0, 0, p[0]])), [0.1], [0.0], [0.999])
    free = fit(left_over, [0.0, 0.0, 0.0, float(fixed.x[0].clip(0.01, 0.9))], [-3, -3, -0.9, 0], [3, 3, 0.9, 0.999])
    error, before = (float(np.sqrt(np.mean(r.fun**2))) for r in (free, fixed))
    offset = [round(float(v) * distance, 4) for v in free.x[:3]]
    return Seen(offset, round(distance, 4), round(float(free.x[3]), 3), round(error, 4), round(before, 4))


def warning(seen: Seen | None) -> str | None:
    """A sentence where the light is not at the camera, or is mostly the room's."""
    if seen is None:
        return None
    away = float(np.hypot(seen.offset[0], seen.offset[1]))
    if away > LIGHT_TOLERANCE * seen.distance and seen.error < CLEARER * seen.at_camera:
        return (
            f"the pictures look as if the light were {away:.2g} m away from the camera, which is {seen.distance:.2g} m "
            "from the head; normals and albedo will lean to one side. Film with the flash on, in a dim room"
        )
    if seen.room > ROOM:
        return (
            f"{seen.room:.0%} of the light seems to come from the room; albedo and highlights will be guesses. Film "
            "with the flash on, in a dim room"
        )
    return None
