"""What is known of a synthetic phone video, in the space of a capture that was made of it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError
from recon4d.cameras import Camera
from recon4d.files import read_json, read_npz
from recon4d.head import load, with_uv
from torch import Tensor
from torch.nn.functional import normalize

from eyeball_relight import assets, filming, motion
from eyeball_relight.assets import Asset
from eyeball_relight.captures import Capture

SUPERSAMPLING = 3


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """asset, lights (K, 3), centres and radius of the eyes: in the capture's space and unit. intensity: (3,) of the
    flash with the mean exposure of the capture's pictures. poses: what the capture's poses are off by, and its size
    and focal length beside the true ones."""

    asset: Asset
    lights: Tensor
    centres: dict[str, Tensor]
    radius: float
    intensity: Tensor
    poses: dict[str, float]


def read(folder: Path, capture: Capture, cameras: Camera) -> VideoTruth:
    """The truth of a video in the space of a capture of it.

    Which turn, size and place that space has beside the true one is a matter of how the head was tracked; all three
    are fitted to the poses (`motion.into_head`), and the size is told.

    Args:
        folder: of `synth --video`. cameras: the capture's, as training has corrected them.

    Raises:
        InputError: not the truth of such a video, or of another one than the capture is of.
    """
    path = folder / "truth" / "truth.json"
    source_path = capture.folder / "source.json"
    if not source_path.is_file():
        raise InputError(f"{capture.folder} has no source.json: --truth goes with a capture of a tracked video")
    data, arrays, source = read_json(path), read_npz(folder / "truth" / "poses.npz"), read_json(source_path)
    try:
        names = [str(name) for name in arrays["names"]]
        frames = {f["name"]: f for f in source["frames"]}
        rate = float(data["fps"])
        # of every few frames one may have been kept, and named anew: their time says which
        numbers = [
            round(frames[name]["time"] * rate) if "time" in frames[name] else names.index(name)
            for name in capture.names
        ]
        turns = np.array([frames[name]["turn"] for name in capture.names], float).reshape(-1, 3, 3)
        true, gain = arrays["world_to_camera"][numbers].astype(float), arrays["gain"][numbers].astype(float)
        focal, size = float(arrays["K"][0, 0]), float(source["size"][0]) / float(data["size"])
        track_focal, seed = float(np.array(source["K"], float)[0, 0]), int(data["seed"])
        eyes, lights = data["eyes"], np.array(data["relight"], np.float32).reshape(-1, 3)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{folder} is not the truth of the video that {capture.folder} is of ({error})") from error
    zoomed = float(cameras.K[0, 0] / capture.camera.K[0, 0])
    zoom = focal * size / (track_focal * zoomed)
    turned = true.copy()
    turned[:, :3] = turns @ true[:, :3]
    ours = cameras.world_to_camera.double().numpy()
    scale, turn, shift = motion.similarity(turned, ours, np.zeros(3), zoom)
    there = motion.into_head(turned, ours, np.zeros(3), zoom)
    poses = {f"pose_{key}": value for key, value in motion.agreement(ours, there, np.zeros(3)).items()}
    poses |= {"size_ratio": round(scale, 4), "focal_ratio": round(1 / zoom, 4)}
    head = with_uv(load())
    if head.name != data.get("head_model"):
        raise InputError(f"{path} is of the head model {data.get('head_model')}; only the open head's can be measured")
    asset, _ = filming.person(head, seed)
    asset = asset | {"face": filming.hair(asset["face"], head, seed)}

    def into(points: Tensor) -> Tensor:
        """x -> G^T (s x - s T)."""
        return ((scale * points.double() - torch.from_numpy(shift)) @ torch.from_numpy(turn)).float()

    moved = {
        part: replace(
            surface,
            vertices=into(surface.vertices),
            normals=normalize((surface.normals.double() @ torch.from_numpy(turn)).float(), dim=1),
        )
        for part, surface in asset.items()
    }
    centres = {side: into(torch.tensor(eyes[f"{side}_centre"])) for side in ("left", "right")}
    exposure = float(np.exp(np.log(gain).mean()))
    intensity = torch.full((3,), float(data["intensity"]) * scale**2 * exposure)
    return VideoTruth(moved, into(torch.from_numpy(lights)), centres, float(eyes["radius"]) * scale, intensity, poses)


def view_truth(truth: VideoTruth, view: Camera) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    """Parts, normals and albedo that a camera sees, and pictures of it under the other lights."""
    pixels = assets.visible(truth.asset, view)
    arrays = {
        "part": pixels.image(pixels.part[:, None] + 1.0).to(torch.uint8).numpy()[..., 0],
        "normal": pixels.image(pixels.normal).numpy(),
        "diffuse": pixels.image(pixels.diffuse).numpy(),
    }
    relit = []
    for light in truth.lights:

        def shade(pixels: assets.Pixels, light: Tensor = light) -> Tensor:
            return assets.lit_by_point(pixels, truth.asset, view.center, light, truth.intensity)

        relit.append(assets.picture(truth.asset, view, shade, SUPERSAMPLING)[0])
    return arrays, relit
