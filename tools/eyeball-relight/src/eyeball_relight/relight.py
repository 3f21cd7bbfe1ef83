"""Pictures of an asset under other lights: a point light on its way, an environment, a camera on its way."""

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import roma
import torch
from recon4d import InputError, cameras, images, mesh, video
from recon4d.cameras import Camera
from recon4d.cli import progress
from recon4d.color import linear_from_srgb
from recon4d.files import most_bytes
from recon4d.runs import claim, claim_file
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import assets, exports
from eyeball_relight.assets import Asset, Pixels
from eyeball_relight.exports import Lights
from eyeball_relight.pictures import write_picture

SUPERSAMPLING = 2


def write_relit(
    asset: str | Path,
    out: str | Path,
    mode: str = "light",
    environment: str | Path | None = None,
    frames: int = 60,
    fps: float = 25.0,
    size: int = 512,
    force: bool = False,
) -> dict[str, Any]:
    """Render an exported asset, given by its folder, under another light; returns what was written.

    Args:
        out: a video if it ends in .mp4, else a folder of pictures.
        mode: what moves: `light`, a point light; `environment`, around the asset; `turntable`, camera and flash.
        environment: an equirectangular picture, .hdr or 8-bit, for that mode.
        size: longer side in pixels.
        force: replace the video, or pictures that this rendered before.

    Raises:
        InputError: an asset or environment that is not readable; an occupied output.
    """
    if (mode == "environment") != (environment is not None):
        raise InputError("--environment PICTURE goes with --mode environment, and only with it")
    out, inputs = Path(out), [asset, environment]
    found, lights = exports.read(Path(asset))
    scale = size / max(lights.front.width, lights.front.height)
    camera = lights.front.resized(
        *(2 * max(1, round(side * scale / 2)) for side in (lights.front.width, lights.front.height))
    )
    if environment is not None:
        pictures = turning_environment(found, camera, read_environment(Path(environment)), frames)
    elif mode == "turntable":
        pictures = turntable(found, lights, camera, frames)
    else:
        pictures = moving_light(found, lights, camera, frames)
    pictures = progress(pictures, "rendering", frames)
    if out.suffix.lower() == ".mp4":
        claim_file(out, force=force, inputs=inputs)
        video.write_mp4(out, ((picture * 255 + 0.5).byte().numpy() for picture in pictures), fps)
    else:
        with claim(out, "eyeball-relight relight", force=force, inputs=inputs):
            for i, picture in enumerate(pictures):
                write_picture(out / f"{i:04d}.png", picture)
    return {"frames": frames, "width": camera.width, "height": camera.height, "out": str(out)}


def read_environment(path: Path) -> Tensor:
    """An equirectangular picture (H, W, 3) of linear radiance: Radiance .hdr, or an 8-bit picture in sRGB.

    The middle of the picture is what lies in front of the face; up is up. Raises InputError for an unreadable file.
    """
    if not path.is_file():
        raise InputError(f"--environment {path} does not exist")
    content = path.read_bytes()
    if content.startswith(b"#?"):
        values = torch.from_numpy(_read_radiance(path, content))
    else:
        values = linear_from_srgb(torch.from_numpy(images.read(path)).float() / 255)
    if min(values.shape[:2]) < 2:
        raise InputError(f"--environment {path} is not a picture of a whole sphere; give a larger one")
    return values


def _read_radiance(path: Path, content: bytes) -> np.ndarray:
    """The values (H, W, 3) of a Radiance picture. Raises InputError for a broken one."""
    size = re.search(rb"\n-Y (\d{1,9}) \+X (\d{1,9})\n", content[:10000])
    height, width = (int(side) for side in size.groups()) if size else (0, 0)
    if not 0 < height * width <= most_bytes(len(content)) // 12:
        raise InputError(f"--environment {path} is not a readable picture ({width}x{height} pixels); give another")
    image: np.ndarray | None = None
    if size is not None and _whole(content[size.end() :], width, height):
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None or image.shape != (height, width, 3):
        raise InputError(f"--environment {path} is not a readable picture; give .hdr, .png or .jpg")
    if not np.isfinite(image).all() or float(image.min()) < 0:
        raise InputError(f"--environment {path} holds negative or infinite radiance; repair it")
    return np.ascontiguousarray(image[..., ::-1], np.float32)


def _whole(rows: bytes, width: int, height: int) -> bool:
    """Whether all rows of a Radiance picture are there, which OpenCV does not look at."""
    if not rows.startswith(b"\2\2") or not 8 <= width < 32768:  # not run-length coded
        return len(rows) >= 4 * width * height
    at = 0
    for _ in range(height):
        at += 4  # a row's mark, then four channels of runs and of numbers as they are
        for _ in range(4):
            filled = 0
            while filled < width:
                if at >= len(rows) or rows[at] == 0:
                    return False
                filled += rows[at] - 128 if rows[at] > 128 else rows[at]
                at += 2 if rows[at] > 128 else 1 + rows[at]
    return at <= len(rows)


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
        shade = partial(assets.lit_by_point, asset=asset, eye=camera.center, light=at, intensity=lights.intensity)
        yield assets.picture(asset, camera, shade, SUPERSAMPLING)[0]


def turning_environment(asset: Asset, camera: Camera, environment: Tensor, n: int) -> Iterator[Tensor]:
    """n pictures (H, W, 3) as an environment turns around the asset once."""
    light, mips = project(environment), mesh.mip_levels(environment[None])
    for i in range(n):
        spin = roma.rotvec_to_rotmat(torch.tensor([0.0, 2 * math.pi * i / n, 0.0]))
        turn = spin @ frame_of(camera)
        shade = partial(lit_by_environment, eye=camera.center, mips=mips, light=light, turn=turn)
        yield assets.picture(asset, camera, shade, SUPERSAMPLING)[0]


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
        shade = partial(assets.lit_by_flash, eye=eye, intensity=lights.intensity)
        yield assets.picture(asset, view, shade, SUPERSAMPLING)[0]
