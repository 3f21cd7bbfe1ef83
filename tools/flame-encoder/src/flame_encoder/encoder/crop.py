"""The encoder's view: a square crop of the image, seen by a fixed camera; and the way back to the image's own camera.

The view's axes are y up and z towards the camera, which stands at (0, 0, distance). The head is made larger by
`scale`, turned about the middle of its face, and moved:

    x_view = scale R (x_head - middle) + transl
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from recon4d import cameras
from recon4d.head import HeadModel
from recon4d.settings import Section
from torch import Tensor

FACING = (1.0, -1.0, -1.0)  # view axes to OpenCV's
CROP_SCALE = 1.6  # side of the crop as a share of the longer side of the box of the 68 landmarks


class CropView(Section):
    """How the head stands in the crop: a camera, and the size of the head before it.

    fov: angle of view, degrees. distance: of the camera, in units of the scaled head. head_size: metres of a head
    that fill the crop at that distance. size: pixels.
    """

    fov: Annotated[float, Field(gt=0, lt=120)] = 30.0
    distance: Annotated[float, Field(gt=0, le=1e4)] = 2.7
    head_size: Annotated[float, Field(gt=0, le=1e4)] = 0.24
    size: Annotated[int, Field(ge=32, le=4096)] = 224

    @property
    def scale(self) -> float:
        """View units per metre of the head: what makes `head_size` fill the picture."""
        return 2 * self.distance * math.tan(math.radians(self.fov) / 2) / self.head_size

    @property
    def K(self) -> Tensor:
        """(3, 3) intrinsics, pixels."""
        return cameras.intrinsics_from_fov(math.radians(self.fov), self.size, self.size)


def middle(head: HeadModel) -> Tensor:
    """(3,) about the middle of the face of the mean head: 3 cm below the midpoint of the eyes."""
    joints = head.joints()[0]
    return (joints[3] + joints[4]) / 2 - joints.new_tensor([0.0, 0.03, 0.0])


def pose(head: HeadModel, view: CropView, rotation: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
    """Head to camera, OpenCV axes, metres: R (B, 3, 3), t (B, 3) with x_camera = R x_head + t, camera `view.K`.

    Args:
        rotation: (B, 3, 3). transl: (B, 3).
    """
    R = rotation * rotation.new_tensor(FACING)[:, None]
    return R, place(view, transl) - R @ middle(head).to(R)


def place(view: CropView, transl: Tensor) -> Tensor:
    """Where the middle of the face stands before the camera (B, 3), metres, OpenCV axes."""
    return (transl * transl.new_tensor(FACING) + transl.new_tensor([0.0, 0.0, view.distance])) / view.scale


def transl_of(view: CropView, place: Tensor) -> Tensor:
    """The inverse of `place`."""
    return (place * view.scale - place.new_tensor([0.0, 0.0, view.distance])) * place.new_tensor(FACING)


def image_pose(
    head: HeadModel, view: CropView, rotation: Tensor, transl: Tensor, crops: Tensor, K: Tensor
) -> tuple[Tensor, Tensor]:
    """Head to the camera of the whole image: R (B, 3, 3), t (B, 3), metres.

    The crop's camera looks along the ray of the crop's centre, so the rotation is carried onto that ray; the distance
    changes with the focal length, so that the head keeps its size in the image.

    Args:
        crops: (B, 3) left, top, side, pixels, as `crops_of` gives them. K: (3, 3) or (B, 3, 3) intrinsics of the image.
    """
    R, _ = pose(head, view, rotation, transl)
    centre = middle(head).to(R)
    stand = place(view, transl)
    seen_with = focal_of(view, crops)
    crop_centre = crops[:, :2] + crops[:, 2:] / 2
    pixel = crop_centre + seen_with[:, None] * stand[:, :2] / stand[:, 2:]
    K = K.to(R).expand(len(R), 3, 3)
    ray = _rays(K, pixel)
    depth = stand[:, 2] * K[:, 0, 0] / seen_with
    turned = _turn_to(torch.nn.functional.normalize(_rays(K, crop_centre), dim=-1)) @ R
    return turned, ray * depth[:, None] - turned @ centre


def vector_pose(
    head: HeadModel, view: CropView, R: Tensor, t: Tensor, crops: Tensor, K: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse of `image_pose`: rotation (B, 3, 3) and transl (B, 3) of the vector.

    Args:
        R, t: (B, 3, 3), (B, 3) head to the camera of the whole image, metres.
    """
    K = K.to(R).expand(len(R), 3, 3)
    seen_with = focal_of(view, crops)
    crop_centre = crops[:, :2] + crops[:, 2:] / 2
    place = R @ middle(head).to(R) + t
    projected = (K @ place[..., None])[..., 0]
    depth = place[:, 2] * seen_with / K[:, 0, 0]
    across = (projected[:, :2] / projected[:, 2:] - crop_centre) * (depth / seen_with)[:, None]
    towards = torch.nn.functional.normalize(_rays(K, crop_centre), dim=-1)
    rotation = _turn_to(towards).mT @ R * R.new_tensor(FACING)[:, None]
    return rotation, transl_of(view, torch.cat([across, depth[:, None]], 1))


def turn_of(crop: Tensor, K: Tensor) -> Tensor:
    """(3, 3) from the axes of the crop's camera to those of the image's; crop (3,), intrinsics K (3, 3)."""
    centre = crop[None, :2].float() + crop[2:].float() / 2
    return _turn_to(torch.nn.functional.normalize(_rays(K[None], centre), dim=-1))[0]


def focal_of(view: CropView, crops: Tensor) -> Tensor:
    """Focal length (B,) of the view's camera in pixels of the image that was cropped."""
    return crops[:, 2] / (2 * math.tan(math.radians(view.fov) / 2))


def _rays(K: Tensor, pixels: Tensor) -> Tensor:
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    answer: Tensor = torch.linalg.solve(K, homogeneous[..., None])[..., 0]
    return answer


def _turn_to(directions: Tensor) -> Tensor:
    """The smallest rotations (B, 3, 3) that take the z axis to unit directions (B, 3)."""
    x, y, z = directions.unbind(-1)
    h = 1 / (1 + z)
    rows = [1 - x * x * h, -x * y * h, x, -x * y * h, 1 - y * y * h, y, -x, -y, z]
    answer: Tensor = torch.stack(rows, -1).unflatten(-1, (3, 3))
    return answer


def box_of(landmarks: Tensor) -> Tensor:
    """The box (B, 4) left, top, right, bottom around landmarks (B, 68, 2)."""
    return torch.cat([landmarks.amin(1), landmarks.amax(1)], 1)


def crops_of(boxes: Tensor) -> Tensor:
    """Square crops (B, 3) left, top, side, whole pixels, around face boxes (B, 4)."""
    side = (CROP_SCALE * (boxes[:, 2:] - boxes[:, :2]).amax(1)).round().clamp_min(2)
    corner = ((boxes[:, :2] + boxes[:, 2:]) / 2 - side[:, None] / 2).round()
    return torch.cat([corner, side[:, None]], 1)


def cut_out(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Crops (B, C, size, size) of images (B, C, H, W); the image's border goes on outside it.

    Args:
        crops: (B, 3) left, top, side, whole pixels.
    """
    height, width = images.shape[-2:]
    out = []
    for image, (left, top, side) in zip(images, crops.long().tolist()):
        rows = torch.arange(top, top + side, device=image.device).clamp(0, height - 1)
        columns = torch.arange(left, left + side, device=image.device).clamp(0, width - 1)
        window = image[:, rows][:, :, columns][None]
        resized = torch.nn.functional.interpolate(window, (size, size), mode="bilinear", antialias=True)
        out.append(resized[0])
    return torch.stack(out)
