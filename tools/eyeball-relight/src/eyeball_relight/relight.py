"""Pictures of an asset under other lights: a point light on its way, an environment, a camera on its way."""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from recon4d import InputError, cameras, mesh
from recon4d.cameras import Camera
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import asset as assets
from eyeball_relight.asset import Asset, Pixels
from eyeball_relight.export import Lights

SUPERSAMPLING = 2


def read_environment(path: Path) -> Tensor:
    """An equirectangular picture (H, W, 3) of linear radiance: Radiance .hdr, or an 8-bit picture in sRGB.

    The middle of the picture is what lies in front of the face; up is up. Raises InputError for an unreadable file.
    """
    from recon4d.color import linear_from_srgb

    if not path.is_file():
        raise InputError(f"--environment {path} does not exist")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None or min(image.shape[:2]) < 2:
        raise InputError(f"--environment {path} is not a readable picture; give .hdr, .png or .jpg")
    values = torch.from_numpy(np.ascontiguousarray(image[..., ::-1]))
    if image.dtype == np.uint8:
        values = linear_from_srgb(values.float() / 255)
    values = values.float()
    if not bool(values.isfinite().all()) or float(values.min()) < 0:
        raise InputError(f"--environment {path} holds negative or infinite radiance; repair it")
    return values


def directions(height: int, width: int) -> Tensor:
    """Unit directions (H, W, 3), y up, of an equirectangular picture's pixels; its middle is +z."""
    v, u = torch.meshgrid(1 - (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return assets.sphere_direction(torch.stack([u, v], -1))


def project(environment: Tensor) -> Tensor:
    """The nine harmonics (9, 3) of an environment's radiance (Ramamoorthi and Hanrahan 2001, equation 10)."""
    height, width = environment.shape[:2]
    towards = directions(height, width)
    area = (1 - towards[..., 1:2] ** 2).sqrt() * (math.pi / height) * (2 * math.pi / width)
    return torch.einsum("hwk,hwc->kc", mesh.sh_basis(towards) * area, environment)


def environment_share(roughness: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Factor of F0 and offset of a glossy lobe under uniform light: Karis's fit (2014, "Physically based shading on
    mobile") of the integral over a GGX lobe. roughness, cosine: (N, 1)."""
    r = [a * roughness + b for a, b in ((-1, 1), (-0.0275, 0.0425), (-0.572, 1.04), (0.022, -0.04))]
    edge = torch.minimum(r[0] * r[0], torch.exp2(-9.28 * cosine)) * r[0] + r[1]
    return -1.04 * edge + r[2], 1.04 * edge + r[3]


def lit_by_environment(pixels: Pixels, eye: Tensor, mips: list[Tensor], light: Tensor, turn: Tensor) -> Tensor:
    """Linear colours (N, 3) under an environment, without shadows: harmonics for the matt part, the picture blurred to
    the width of the lobe in the mirror's direction for the glossy one.

    Args:
        mips: `mesh.mip_levels` of the picture (1, H, W, 3). light: `project` of it. turn: (3, 3) from the asset's axes
            to the environment's.
    """
    normal, towards = pixels.normal @ turn.T, normalize(eye - pixels.position, dim=-1) @ turn.T
    cosine = (normal * towards).sum(-1, keepdim=True)
    mirrored = 2 * cosine * normal - towards
    matt = pixels.diffuse * mesh.sh_irradiance(normal[None], light)[0].clamp(min=0)
    uv = torch.stack(
        [
            torch.atan2(mirrored[:, 0], mirrored[:, 2]) / (2 * math.pi) + 0.5,
            torch.asin(mirrored[:, 1].clamp(-1, 1)) / math.pi + 0.5,
        ],
        -1,
    )
    angle = 2 * pixels.roughness**2  # about the lobe's width, radians
    da = torch.zeros(len(uv), 2, 2)
    da[:, 0, 0], da[:, 1, 1] = angle[:, 0] / (2 * math.pi), angle[:, 0] / math.pi
    glossy = mesh.texture(mips[0], uv[None, None], "trilinear", da[None, None], "wrap", mips)[0, 0]
    factor, offset = environment_share(pixels.roughness, cosine.clamp(0, 1))
    # the offset is the grazing reflection, which no surface without gloss has
    gloss = 0.08 * pixels.specular * factor + offset.clamp(min=0) * (pixels.specular > 0)
    return matt + gloss * glossy


def frame_of(camera: Camera) -> Tensor:
    """Axes (3, 3), as rows, of who stands before a camera: its right, up, and towards the camera."""
    rotation = camera.world_to_camera[:3, :3]
    return torch.stack([rotation[0], -rotation[1], -rotation[2]])


def middle_of(asset: Asset) -> Tensor:
    """The middle (3,) of an asset's box."""
    vertices = torch.cat([s.vertices for s in asset.values()])
    return (vertices.amin(0) + vertices.amax(0)) / 2


def moving_light(asset: Asset, lights: Lights, camera: Camera, n: int) -> Iterator[Tensor]:
    """n pictures (H, W, 3) as a point light goes around the line of sight once, at the flash's distance."""
    middle, axes = middle_of(asset), frame_of(camera)
    distance = float((camera.center - middle).norm())
    for i in range(n):
        angle, tilt = 2 * math.pi * i / n, math.radians(50)
        local = torch.tensor([math.sin(angle) * math.sin(tilt), math.cos(angle) * math.sin(tilt), math.cos(tilt)])
        at = middle + distance * (local @ axes)
        yield assets.picture(
            asset,
            camera,
            lambda p, at=at: assets.lit_by_point(p, asset, camera.center, at, lights.intensity),
            SUPERSAMPLING,
        )[0]


def turning_environment(asset: Asset, camera: Camera, environment: Tensor, n: int) -> Iterator[Tensor]:
    """n pictures (H, W, 3) as an environment turns around the asset once."""
    light, mips = project(environment), mesh.mip_levels(environment[None])
    for i in range(n):
        spin = roma.rotvec_to_rotmat(torch.tensor([0.0, 2 * math.pi * i / n, 0.0]))
        turn = spin @ frame_of(camera)
        yield assets.picture(
            asset, camera, lambda p, turn=turn: lit_by_environment(p, camera.center, mips, light, turn), SUPERSAMPLING
        )[0]


def turntable(asset: Asset, lights: Lights, camera: Camera, n: int, reach: float = 60.0) -> Iterator[Tensor]:
    """n pictures (H, W, 3) as camera and flash swing `reach` degrees to both sides and back."""
    middle, axes = middle_of(asset), frame_of(camera)
    distance = float((camera.center - middle).norm())
    for i in range(n):
        yaw = math.radians(reach) * math.sin(2 * math.pi * i / n)
        eye = middle + distance * (torch.tensor([math.sin(yaw), 0.0, math.cos(yaw)]) @ axes)
        pose = torch.eye(4)
        pose[:] = cameras.look_at(eye, middle, axes[1])
        view = Camera(camera.K, pose, camera.width, camera.height)
        yield assets.picture(
            asset, view, lambda p, eye=eye: assets.lit_by_flash(p, eye, lights.intensity), SUPERSAMPLING
        )[0]
