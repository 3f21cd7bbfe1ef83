"""Cameras: the Camera of the library, and conversions from and to the conventions of others.

The library's convention is OpenCV's: camera axes x right, y down, z forward; `world_to_camera` is a 4x4 matrix that
acts on column vectors; intrinsics K are in pixels, and pixel (row r, column c) has its centre at (c + 0.5, r + 0.5).
Conversions happen where files are read and written, and nowhere else.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# columns of camera_to_world, or rows of world_to_camera, that change sign between OpenCV and the other axes
_OPENGL = (1.0, -1.0, -1.0, 1.0)  # x right, y up, z backward: OpenGL, Blender, NeRF
_PYTORCH3D = (-1.0, -1.0, 1.0, 1.0)  # x left, y up, z forward


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera, or a batch of them that share the image size.

    K: (..., 3, 3) intrinsics in pixels. world_to_camera: (..., 4, 4), OpenCV axes. width, height: pixels.
    """

    K: Tensor
    world_to_camera: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.K.shape[-2:] != (3, 3) or self.world_to_camera.shape[-2:] != (4, 4):
            raise ValueError(
                f"camera has K of shape {tuple(self.K.shape)} and world_to_camera of shape "
                f"{tuple(self.world_to_camera.shape)}; give (..., 3, 3) and (..., 4, 4)"
            )
        if self.width < 1 or self.height < 1:
            raise ValueError(f"camera image size {self.width} x {self.height} is empty; give at least 1 x 1 pixels")

    @property
    def camera_to_world(self) -> Tensor:
        """(..., 4, 4) inverse of `world_to_camera`."""
        return _inverse(self.world_to_camera)

    @property
    def center(self) -> Tensor:
        """(..., 3) position of the camera in the world."""
        rotation, translation = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        return -(rotation.transpose(-1, -2) @ translation[..., None])[..., 0]

    def to(self, *args: Any, **kwargs: Any) -> "Camera":
        """The camera with its tensors moved or converted, as by `Tensor.to`."""
        return replace(self, K=self.K.to(*args, **kwargs), world_to_camera=self.world_to_camera.to(*args, **kwargs))

    def resized(self, width: int, height: int) -> "Camera":
        """The same view at another resolution."""
        scale = self.K.new_tensor([[width / self.width] * 3, [height / self.height] * 3, [1.0] * 3])
        return replace(self, K=self.K * scale, width=width, height=height)

    def cropped(self, left: int, top: int, width: int, height: int) -> "Camera":
        """The camera of a window of the image: its column `left` and row `top` become 0."""
        shift = self.K.new_zeros(3, 3)
        shift[0, 2], shift[1, 2] = left, top
        return replace(self, K=self.K - shift, width=width, height=height)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of world points: (..., N, 3) -> pixels (..., N, 2) and depth (..., N) along the optical axis."""
        return project(points, self.K, self.world_to_camera)

    def clip_from_camera(self, near: float = 0.01, far: float = 100.0) -> Tensor:
        """(..., 4, 4) projection from camera axes (OpenCV) to OpenGL clip space; see `projection`."""
        return projection(self.K, self.width, self.height, near, far)

    def clip_from_world(self, near: float = 0.01, far: float = 100.0) -> Tensor:
        """(..., 4, 4) from world to OpenGL clip space."""
        return self.clip_from_camera(near, far) @ self.world_to_camera

    def clip(self, points: Tensor, near: float = 0.01, far: float = 100.0) -> Tensor:
        """World points (..., N, 3) to OpenGL clip space (..., N, 4), ready for `mesh.rasterize`."""
        return transform(self.clip_from_world(near, far), points, homogeneous=True)


def transform(matrix: Tensor, points: Tensor, homogeneous: bool = False) -> Tensor:
    """Apply (..., 4, 4) to points (..., N, 3): (..., N, 3), or (..., N, 4) with the last coordinate kept."""
    moved = points @ matrix[..., :3].transpose(-1, -2) + matrix[..., None, :, 3]
    return moved if homogeneous else moved[..., :3]


def project(points: Tensor, K: Tensor, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Pinhole projection: world points (..., N, 3) -> pixels (..., N, 2), depth (..., N), < 0 behind."""
    camera = transform(world_to_camera, points)
    image = camera @ K.transpose(-1, -2)
    return image[..., :2] / image[..., 2:], camera[..., 2]


def unproject(pixels: Tensor, depth: Tensor, K: Tensor, world_to_camera: Tensor) -> Tensor:
    """The inverse of `project`: pixels (..., N, 2), depth (..., N) -> world points (..., N, 3)."""
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1) @ torch.linalg.inv(K).transpose(-1, -2)
    return transform(torch.linalg.inv(world_to_camera), rays * depth[..., None])


def projection(K: Tensor, width: int, height: int, near: float = 0.01, far: float = 100.0) -> Tensor:
    """OpenGL projection matrix (..., 4, 4) of a pinhole camera with OpenCV axes.

    It maps pixel column 0 to x = -1, column `width` to 1, row 0 to y = +1 (clip space has y up), depth `near` to
    z = -1 and `far` to z = 1; w is the depth. `far` may be infinite.

    Args:
        K: (..., 3, 3) in pixels, skew allowed. near, far: in the unit of the points, 0 < near < far.
    """
    if not 0 < near < far:
        raise ValueError(f"near {near} and far {far} do not bound a view; give 0 < near < far")
    zero, one = torch.zeros_like(K[..., 0, 0]), torch.ones_like(K[..., 0, 0])
    if far == float("inf"):
        slope, offset = 1.0, -2.0 * near
    else:
        slope, offset = (far + near) / (far - near), -2.0 * far * near / (far - near)
    rows = [
        [2 * K[..., 0, 0] / width, 2 * K[..., 0, 1] / width, 2 * K[..., 0, 2] / width - 1, zero],
        [zero, -2 * K[..., 1, 1] / height, 1 - 2 * K[..., 1, 2] / height, zero],
        [zero, zero, slope * one, offset * one],
        [zero, zero, one, zero],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def intrinsics(projection_matrix: Tensor, width: int, height: int) -> Tensor:
    """K (..., 3, 3) in pixels of an OpenGL projection matrix of OpenCV axes, the inverse of `projection`."""
    p = projection_matrix
    zero, one = torch.zeros_like(p[..., 0, 0]), torch.ones_like(p[..., 0, 0])
    rows = [
        [p[..., 0, 0] * width / 2, p[..., 0, 1] * width / 2, (p[..., 0, 2] + 1) * width / 2],
        [zero, -p[..., 1, 1] * height / 2, (1 - p[..., 1, 2]) * height / 2],
        [zero, zero, one],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def intrinsics_from_fov(fov_x: float, width: int, height: int) -> Tensor:
    """K (3, 3) with square pixels and the principal point in the middle; `fov_x` in radians."""
    focal = 0.5 * width / torch.tan(torch.tensor(fov_x / 2, dtype=torch.float64)).item()
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """world_to_camera (..., 4, 4), OpenCV axes, of a camera at `eye` that looks at `target`; all (..., 3)."""
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], -2)
    return _rigid(rotation, -(rotation @ eye[..., None])[..., 0])


def _inverse(matrix: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.inv(matrix)
    return inverse


def _rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def from_opengl(camera_to_world: Tensor) -> Tensor:
    """OpenGL / NeRF camera_to_world (..., 4, 4) (y up, z backward; transforms.json) -> OpenCV world_to_camera."""
    return _inverse(camera_to_world * camera_to_world.new_tensor(_OPENGL))


def to_opengl(world_to_camera: Tensor) -> Tensor:
    """OpenCV world_to_camera (..., 4, 4) -> OpenGL / NeRF camera_to_world, as transforms.json holds it."""
    return _inverse(world_to_camera) * world_to_camera.new_tensor(_OPENGL)


def from_ngp(camera_to_world: Tensor, scale: float = 0.33, offset: float = 0.5) -> Tensor:
    """Camera matrix inside instant-ngp (..., 3 or 4, 4) -> OpenCV world_to_camera (..., 4, 4) in the NeRF world.

    instant-ngp flips the camera's y and z axes, scales and moves the world into its unit cube, and cycles the world
    axes (x, y, z) -> (y, z, x) (`nerf_matrix_to_ngp` in its nerf_loader.h). Its default scale and offset are 0.33
    and 0.5; INSTA writes transforms.json, which is plain NeRF: read that with `from_opengl`.
    """
    top = camera_to_world[..., :3, :][..., [2, 0, 1], :]  # undo the cycle
    return _inverse(_rigid(top[..., :3], (top[..., 3] - offset) / scale))


def to_ngp(world_to_camera: Tensor, scale: float = 0.33, offset: float = 0.5) -> Tensor:
    """OpenCV world_to_camera (..., 4, 4) -> camera matrix inside instant-ngp (..., 4, 4); see `from_ngp`."""
    pose = torch.linalg.inv(world_to_camera)  # OpenCV axes are NeRF's with y and z flipped, as ngp wants them
    return _rigid(pose[..., [1, 2, 0], :3], (pose[..., :3, 3] * scale + offset)[..., [1, 2, 0]])


def to_pytorch3d(camera: Camera) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R (..., 3, 3), T (..., 3), focal_length (..., 2), principal_point (..., 2) of PyTorch3D's PerspectiveCameras.

    PyTorch3D has x left, y up, z forward, row vectors (x R + T), and NDC intrinsics over the shorter image side, its
    origin in the image centre; use with in_ndc=True. Skew is not representable and is ignored.
    """
    flip = camera.K.new_tensor(_PYTORCH3D[:3])
    rotation = (camera.world_to_camera[..., :3, :3] * flip[:, None]).transpose(-1, -2)
    translation = camera.world_to_camera[..., :3, 3] * flip
    half = min(camera.width, camera.height) / 2
    focal = torch.stack([camera.K[..., 0, 0], camera.K[..., 1, 1]], -1) / half
    center = camera.K.new_tensor([camera.width / 2, camera.height / 2])
    return rotation, translation, focal, (center - camera.K[..., :2, 2]) / half


def from_pytorch3d(
    R: Tensor,
    T: Tensor,
    focal_length: Tensor,
    principal_point: Tensor,
    width: int,
    height: int,
    in_ndc: bool = True,
) -> Camera:
    """A Camera from PyTorch3D's R (..., 3, 3), T (..., 3), focal_length, principal_point (..., 2).

    See `to_pytorch3d`. With `in_ndc=False` the intrinsics are in screen space: pixels, origin at the top left.
    """
    flip = R.new_tensor(_PYTORCH3D[:3])
    world_to_camera = _rigid(R.transpose(-1, -2) * flip[:, None], T * flip)
    half = min(width, height) / 2
    if in_ndc:
        focal_length = focal_length * half
        principal_point = R.new_tensor([width / 2, height / 2]) - principal_point * half
    K = torch.zeros_like(R)
    K[..., 0, 0], K[..., 1, 1] = focal_length[..., 0], focal_length[..., 1]
    K[..., :2, 2], K[..., 2, 2] = principal_point, 1.0
    return Camera(K, world_to_camera, width, height)
