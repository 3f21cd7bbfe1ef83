"""The asset on disk: meshes, maps, eyeballs, glTF and a page to look at it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError, mesh
from recon4d.cameras import Camera
from recon4d.cli import pick_device
from recon4d.files import read_npz, write_npz, write_text
from recon4d.images import MOST_PIXELS
from recon4d.runs import claim
from torch import Tensor

from eyeball_relight import assets, brdf, captures, config, gltf, objfile, preview, refinement, surface, usdz
from eyeball_relight.assets import Asset, Surface
from eyeball_relight.captures import Capture
from eyeball_relight.checkpoint import open_field
from eyeball_relight.field import Field, eyeballs
from eyeball_relight.pictures import read_picture, write_picture

MAPS = ("diffuse", "specular", "roughness")
EYE_MAP = 512  # texels per side of an eyeball's map


@dataclass(frozen=True, eq=False)
class Lights:
    """What lit the capture: the flash's intensity (3,), the room's light (9, 3) and, per view, its occlusion (V, 9).

    front: the camera of the view nearest to the middle of all. views: of all views, as training corrected them, or
    None of an asset that does not say.
    """

    intensity: Tensor
    ambient: Tensor
    occlusion: Tensor
    scale: float
    front: Camera
    views: Camera | None = None


def bake(field: Field, active: list[int], position: Tensor, part: int, chunk: int) -> Tensor:
    """Diffuse, specular, roughness (N, 5) at points (N, 3) in the capture's unit."""
    out = []
    with torch.no_grad():
        for at in (position / field.config.data.bound).split(chunk):
            material = field.material(at, torch.full((len(at),), part), active)
            out.append(torch.cat([material.diffuse, material.specular, material.roughness], 1))
    return torch.cat(out) if out else torch.zeros(0, 5)


def face_surface(field: Field, active: list[int], vertices: Tensor, faces: Tensor, size: int, chunk: int) -> Surface:
    """The mesh unwrapped, with maps of size x size texels baked from the field."""
    vt, ft = surface.unwrap(vertices, faces)
    texels = mesh.bake_uv(vt, ft, (size, size))
    if not bool(texels.mask.any()):
        raise InputError(f"--uv-size {size} leaves no texel on the surface; raise it")
    maps = torch.zeros(size, size, 5)
    rows, columns = texels.mask.nonzero(as_tuple=True)
    corners = vertices[faces]
    for some in torch.arange(len(rows)).split(1 << 20):  # positions of a 4096 x 4096 map are not held at once
        r, c = rows[some], columns[some]
        position = (corners[texels.tri_id[r, c].long()] * texels.bary[r, c, :, None]).sum(1)
        maps[r, c] = bake(field, active, position, 0, chunk)
    maps = mesh.fill_gutter(maps, texels.mask, 8)
    normals = surface.normals_of(field, vertices, active)
    return Surface(vertices, normals, faces, vt, ft, *maps.split([3, 1, 1], -1))


def eye_surface(
    field: Field,
    active: list[int],
    capture: Capture,
    face: Surface,
    k: int,
    chunk: int,
    log: Callable[[str], None],
) -> Surface:
    """Eyeball k (0 left, 1 right) with its diffuse map; unseen texels have the colour of the nearest seen one."""
    bound = field.config.data.bound
    centre, radius = field.eye_centres[k] * bound, float(field.eye_radius) * bound
    axis = (torch.arange(EYE_MAP) + 0.5) / EYE_MAP
    v, u = torch.meshgrid(1 - axis, axis, indexing="ij")
    position = centre + radius * assets.sphere_direction(torch.stack([u, v], -1)).view(-1, 3)
    both = {"face": face, **eyeballs(field)}
    name = assets.PARTS[k + 1]
    seen = torch.zeros(EYE_MAP, EYE_MAP)
    for i in capture.trained:
        pixels = assets.visible(both, capture.view(i))
        own = pixels.part == k + 1
        towards = torch.nn.functional.normalize(pixels.position[own] - centre, dim=-1)
        uu = torch.atan2(towards[:, 0], towards[:, 2]) / (2 * np.pi) + 0.5
        vv = torch.asin(towards[:, 1].clamp(-1, 1)) / np.pi + 0.5
        row, column = ((1 - vv) * EYE_MAP).long(), (uu * EYE_MAP).long()
        seen[row.clamp(0, EYE_MAP - 1), column.clamp(0, EYE_MAP - 1)] = 1
    # pixels are coarser than texels
    reach = max(3, round(EYE_MAP * 3 / max(capture.camera.width, 1)) * 2 + 1)
    wide = torch.from_numpy(cv2.morphologyEx(seen.numpy(), cv2.MORPH_CLOSE, np.ones((reach, reach)))) > 0
    if not bool(wide.any()):
        log(f"warning: no picture sees the {name} eyeball; check {'lr'[k]}eye_mask and the eyeball landmarks")
    diffuse = bake(field, active, position, k + 1, chunk)[:, :3].view(EYE_MAP, EYE_MAP, 3)
    return assets.eyeball(centre, radius, mesh.fill_gutter(diffuse, wide))


def export(
    config_path: str | Path,
    ckpt_path: str | Path,
    save_visual_dir: str | Path,
    uv_size: int = 1024,
    faces: int = 40000,
    chunk_size: int = 16384,
    device: str = "cpu",
    force: bool = False,
    log: Callable[[str], None] = print,
    with_usdz: bool = False,
) -> dict[str, Any]:
    """Write a trained run as meshes, maps, eyeballs, asset.glb and preview.html; returns a summary.

    Args:
        config_path: the capture's `config.yaml`. ckpt_path: the run's `latest.pth`. save_visual_dir: where it goes.
        uv_size: texels per side. faces: at most so many triangles. chunk_size: points evaluated at once.
        force: replace what an earlier export wrote there. with_usdz: write asset.usdz as well.

    Raises:
        InputError: an occupied folder, a checkpoint that is not readable or is of another capture, no surface,
            `with_usdz` without usd-core.
    """
    if with_usdz:
        usdz.modules()
    if device not in ("auto", "0") and pick_device(device).type != "cpu":
        raise InputError(f"--device {device}: export runs on the CPU only; use cpu")
    out, folder = Path(save_visual_dir), config.load(config_path).folder
    field, intensity, step = open_field(Path(ckpt_path))
    inputs = [folder, config_path, ckpt_path]
    with claim(out, "eyeball-relight export", force=force, inputs=inputs):
        capture = captures.read(folder, log)
        if len(field.occlusion) != len(capture):
            raise InputError(f"{ckpt_path} was trained on {len(field.occlusion)} views and {folder} has {len(capture)}")
        summary = export_field(field, step, intensity, capture, out, uv_size, faces, chunk_size, log)
        if with_usdz:
            usdz.write(out / "asset.usdz", read(out)[0])
        return summary


def export_field(
    field: Field,
    step: int,
    intensity: Tensor,
    capture: Capture,
    folder: Path,
    uv_size: int,
    most_faces: int,
    chunk: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Write the asset of a trained field into `folder`; returns a summary. Raises InputError without a surface."""
    capture = refinement.corrected(field, capture)
    active = field.active(step)
    eyes = eyeballs(field)
    vertices, faces = surface.build(field, active, capture, eyes, field.config.train.mesh_resolution, most_faces, log)
    face = face_surface(field, active, vertices, faces, uv_size, chunk)
    asset = {"face": face}
    for k, part in enumerate(eyes):
        asset[part] = eye_surface(field, active, capture, face, k, chunk, log)
    write(folder, asset, field, intensity, front_view(capture), capture.camera)
    summary = {"vertices": len(vertices), "triangles": len(faces), "uv_size": uv_size, "folder": str(folder)}
    if eyes:
        bound = field.config.data.bound
        summary |= {
            "left_centre": (field.eye_centres[0] * bound).tolist(),
            "right_centre": (field.eye_centres[1] * bound).tolist(),
            "radius": float(field.eye_radius) * bound,
        }
    write_text(folder / "asset.json", json.dumps(summary, indent=2) + "\n")
    return summary


def front_view(capture: Capture) -> Camera:
    """The view whose camera is nearest to the middle of all cameras."""
    centres = capture.camera.center
    return capture.view(int((centres - centres.mean(0)).norm(dim=1).argmin()))


def write(folder: Path, asset: Asset, field: Field, intensity: Tensor, front: Camera, views: Camera) -> None:
    """Meshes, maps, light, glTF and preview of an asset.

    Args:
        front: of the view to begin with. views: of all, as training corrected them.
    """
    for part, item in asset.items():
        where = folder if part == "face" else folder / part
        objfile.write(where / "mesh_uv.obj", item, "diffuse.png")
        write_picture(where / "diffuse.png", brdf.to_picture(item.diffuse).numpy())
        write_picture(where / "specular.png", item.specular.numpy())
        write_picture(where / "roughness.png", item.roughness.numpy())
        size = item.diffuse.shape[0]
        texels = mesh.bake_uv(item.vt, item.ft, (size, size))
        normal = torch.nn.functional.normalize(texels.interpolate(item.normals, item.faces), dim=-1)
        write_picture(where / "normal.png", (normal * 0.5 + 0.5).numpy() * texels.mask[..., None].numpy())
        coord = texels.interpolate(item.vertices, item.faces)
        write_npz(where / "coord.npz", coord=coord.numpy(), mask=texels.mask.numpy())
    face = asset["face"]
    lines = [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in face.vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (face.faces + 1).tolist()]
    write_text(folder / "mesh.obj", "\n".join(lines) + "\n")
    write_npz(
        folder / "light.npz",
        intensity=intensity.numpy(),
        ambient=field.ambient.numpy(),
        occlusion=field.occlusion.numpy(),
        scale=np.float32(field.config.light.ambient_scale),
        exposure=refinement.gains(field).detach().numpy(),
        K=views.K.numpy(),
        world_to_camera=views.world_to_camera.numpy(),
        front_K=front.K.numpy(),
        front_world_to_camera=front.world_to_camera.numpy(),
        front_size=np.array([front.width, front.height]),
    )
    gltf.write(folder / "asset.glb", asset)
    preview.write(folder / "preview.html", folder / "asset.glb")


def read(folder: Path) -> tuple[Asset, Lights]:
    """Read an exported asset. Raises InputError for what is missing or broken."""
    if not (folder / "mesh_uv.obj").is_file():
        raise InputError(f"{folder} holds no mesh_uv.obj; give a folder that eyeball-relight export wrote")
    asset = {}
    for part in assets.PARTS:
        where = folder if part == "face" else folder / part
        if not (where / "mesh_uv.obj").is_file():
            continue
        found = objfile.read(where / "mesh_uv.obj")
        maps = {
            name: torch.from_numpy(read_picture(where / f"{name}.png", 3 if name == "diffuse" else 1)) for name in MAPS
        }
        maps["diffuse"] = brdf.to_linear(maps["diffuse"])
        sizes = {tuple(m.shape[:2]) for m in maps.values()}
        if len(sizes) > 1:
            raise InputError(f"{where}: diffuse, specular and roughness have different sizes; export again")
        asset[part] = Surface(**found, **maps)
    return asset, _read_lights(folder / "light.npz")


def _read_lights(path: Path) -> Lights:
    """Raises InputError for arrays that are missing, of other shapes or not finite."""
    arrays = read_npz(path)
    try:
        light = {key: arrays[key].astype(np.float32) for key in ("intensity", "ambient", "occlusion", "scale")}
        K, pose = (arrays[f"front_{key}"].astype(np.float32) for key in ("K", "world_to_camera"))
        width, height = (int(x) for x in arrays["front_size"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} lacks arrays ({error}); export again") from error
    shapes = [light[key].shape for key in ("intensity", "ambient", "scale")] + [K.shape, pose.shape]
    fine = shapes == [(3,), (9, 3), (), (3, 3), (4, 4)] and light["occlusion"].shape[1:] == (9,)
    fine = fine and all(np.isfinite(values).all() for values in (*light.values(), K, pose))
    if not fine or min(width, height) < 1 or width * height > MOST_PIXELS or min(K[0, 0], K[1, 1]) <= 0:
        raise InputError(f"{path} holds arrays that are no lights and camera; export again")
    intensity, ambient, occlusion = (torch.from_numpy(light[key]) for key in ("intensity", "ambient", "occlusion"))
    front = Camera(torch.from_numpy(K), torch.from_numpy(pose), width, height)
    return Lights(intensity, ambient, occlusion, float(light["scale"]), front, _views(arrays, len(occlusion)))


def _views(arrays: dict[str, np.ndarray], n: int) -> Camera | None:
    K, poses = (arrays.get(key, np.zeros(0)) for key in ("K", "world_to_camera"))
    if K.shape != (3, 3) or poses.shape != (n, 4, 4) or K.dtype.kind != "f" or poses.dtype.kind != "f":
        return None
    if not (np.isfinite(K).all() and np.isfinite(poses).all() and min(K[0, 0], K[1, 1]) > 0):
        return None
    width, height = (int(x) for x in arrays["front_size"])
    return Camera(torch.from_numpy(K).float(), torch.from_numpy(poses).float(), width, height)
