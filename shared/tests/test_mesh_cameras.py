"""Cameras: projection, the OpenGL matrix, and round trips between conventions, with PyTorch3D's as reference."""

import math

import pytest
import roma
import torch
from pytorch3d.renderer import PerspectiveCameras
from pytorch3d.utils import cameras_from_opencv_projection
from recon4d import cameras, mesh


def random_camera(*shape: int, seed: int = 0, width: int = 96, height: int = 64) -> cameras.Camera:
    generator = torch.Generator().manual_seed(seed)
    quaternion = torch.nn.functional.normalize(torch.randn(*shape, 4, dtype=torch.float64, generator=generator), dim=-1)
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(*shape, 1, 1)
    world_to_camera[..., :3, :3] = roma.unitquat_to_rotmat(quaternion)
    world_to_camera[..., :3, 3] = torch.randn(*shape, 3, dtype=torch.float64, generator=generator)
    K = torch.eye(3, dtype=torch.float64).repeat(*shape, 1, 1)
    K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2] = 90.0, 110.0, 45.0, 36.5
    return cameras.Camera(K, world_to_camera, width, height)


def points_seen_by(camera: cameras.Camera, count: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (*camera.K.shape[:-2], count)
    pixels = torch.rand(*shape, 2, dtype=torch.float64, generator=generator) * torch.tensor(
        [camera.width, camera.height]
    )
    depth = 1 + 4 * torch.rand(*shape, dtype=torch.float64, generator=generator)
    return cameras.unproject(pixels, depth, camera.K, camera.world_to_camera)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_project_follows_the_pinhole_formula_and_unproject_inverts_it(shape):
    camera = random_camera(*shape)
    points = torch.randn(*shape, 7, 3, dtype=torch.float64)
    pixels, depth = camera.project(points)
    rotation, translation = camera.world_to_camera[..., :3, :3], camera.world_to_camera[..., :3, 3]
    inside = torch.einsum("...ij,...nj->...ni", rotation, points) + translation[..., None, :]
    torch.testing.assert_close(depth, inside[..., 2])
    torch.testing.assert_close(pixels[..., 0], 90 * inside[..., 0] / inside[..., 2] + 45)
    torch.testing.assert_close(pixels[..., 1], 110 * inside[..., 1] / inside[..., 2] + 36.5)
    torch.testing.assert_close(cameras.unproject(pixels, depth, camera.K, camera.world_to_camera), points)
    torch.testing.assert_close(
        camera.project(camera.center[..., None, :])[1], torch.zeros(*shape, 1, dtype=torch.float64)
    )


def test_clip_space_agrees_with_project():
    camera = random_camera(3)
    points = points_seen_by(camera)
    clip = camera.clip(points, near=0.5, far=9.0)
    ndc = clip[..., :3] / clip[..., 3:]
    pixels, depth = camera.project(points)
    torch.testing.assert_close((ndc[..., 0] + 1) / 2 * camera.width, pixels[..., 0])
    torch.testing.assert_close((1 - ndc[..., 1]) / 2 * camera.height, pixels[..., 1])
    torch.testing.assert_close(clip[..., 3], depth)
    ends = cameras.transform(camera.clip_from_camera(0.5, 9.0), torch.tensor([[0, 0, 0.5], [0, 0, 9.0]]).double(), True)
    torch.testing.assert_close(ends[..., 2] / ends[..., 3], torch.tensor([-1.0, 1.0]).double().expand(3, 2))
    far = cameras.projection(camera.K, 96, 64, 0.5, math.inf)
    torch.testing.assert_close(far, cameras.projection(camera.K, 96, 64, 0.5, 1e12), atol=1e-9, rtol=0)
    torch.testing.assert_close(cameras.intrinsics(camera.clip_from_camera(), 96, 64), camera.K)


def test_a_rendered_point_lands_on_its_pixel():
    camera = random_camera(4).to(torch.float32)
    pixel = torch.tensor([[20.0, 10.0], [24.0, 10.0], [20.0, 14.0], [24.0, 14.0]]).expand(4, 4, 2)
    corners = cameras.unproject(pixel, torch.full((4, 4), 2.0), camera.K, camera.world_to_camera)
    clip = torch.cat([camera.clip(corners)[i : i + 1] for i in range(4)])
    ids, _ = mesh.visibility(clip, torch.tensor([[0, 1, 2], [1, 3, 2]]), (64, 96))
    want = torch.zeros(64, 96, dtype=torch.bool)
    want[10:14, 20:24] = True
    assert ((ids >= 0) == want).all()


def test_resized_and_cropped_cameras_see_the_same():
    camera = random_camera()
    points = points_seen_by(camera)
    pixels, _ = camera.project(points)
    torch.testing.assert_close(camera.resized(192, 32).project(points)[0], pixels * torch.tensor([2, 0.5]).double())
    window = camera.cropped(10, 5, 40, 30)
    torch.testing.assert_close(window.project(points)[0], pixels - torch.tensor([10, 5]).double())
    assert (window.width, window.height) == (40, 30)


def test_pytorch3d_conversion_equals_its_own_and_round_trips():
    camera = random_camera(2)
    rotation, translation, focal, principal = cameras.to_pytorch3d(camera)
    theirs = cameras_from_opencv_projection(
        camera.world_to_camera[:, :3, :3],
        camera.world_to_camera[:, :3, 3],
        camera.K,
        torch.tensor([[64, 96]] * 2),
    )
    torch.testing.assert_close(rotation, theirs.R)
    torch.testing.assert_close(translation, theirs.T)
    torch.testing.assert_close(focal, theirs.focal_length)
    torch.testing.assert_close(principal, theirs.principal_point)
    points = points_seen_by(camera)
    parts = {"R": rotation, "T": translation, "focal_length": focal, "principal_point": principal}
    seen = PerspectiveCameras(**{key: value.float() for key, value in parts.items()}, in_ndc=True)
    screen = seen.transform_points_screen(points.float(), image_size=((64, 96),) * 2)
    torch.testing.assert_close(screen[..., :2], camera.project(points)[0].float(), atol=1e-3, rtol=0)
    back = cameras.from_pytorch3d(rotation, translation, focal, principal, 96, 64)
    torch.testing.assert_close(back.K, camera.K)
    torch.testing.assert_close(back.world_to_camera, camera.world_to_camera)
    pixels = cameras.from_pytorch3d(
        rotation,
        translation,
        torch.tensor([[90.0, 110]] * 2),
        torch.tensor([[45.0, 36.5]] * 2),
        96,
        64,
        in_ndc=False,
    )
    torch.testing.assert_close(pixels.K, camera.K)


def test_opengl_round_trip_and_axes():
    camera = random_camera(5)
    pose = cameras.to_opengl(camera.world_to_camera)
    torch.testing.assert_close(cameras.from_opengl(pose), camera.world_to_camera)
    torch.testing.assert_close(pose[:, :3, 3], camera.center)
    # a NeRF camera looks along its -z and has y up: the point one metre along is at depth 1, one up has smaller row
    ahead, above = pose[:, :3, 3] - pose[:, :3, 2], pose[:, :3, 3] - pose[:, :3, 2] + 0.1 * pose[:, :3, 1]
    pixels, depth = camera.project(torch.stack([ahead, above], 1))
    torch.testing.assert_close(depth, torch.ones_like(depth))
    assert (pixels[:, 1, 1] < pixels[:, 0, 1]).all()


def test_ngp_round_trip_and_a_matrix_by_hand():
    camera = random_camera(5)
    inside = cameras.to_ngp(camera.world_to_camera, scale=0.5, offset=0.25)
    torch.testing.assert_close(cameras.from_ngp(inside, 0.5, 0.25), camera.world_to_camera)
    torch.testing.assert_close(cameras.from_ngp(inside[:, :3], 0.5, 0.25), camera.world_to_camera)
    # instant-ngp's own steps on a NeRF matrix: flip columns 1 and 2, scale and offset, then row order y, z, x
    nerf = torch.arange(16.0).view(4, 4)
    nerf[:3, :3] = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.2, 0.9]))
    nerf[3] = torch.tensor([0.0, 0, 0, 1])
    want = nerf.clone()
    want[:, 1] *= -1
    want[:, 2] *= -1
    want[:3, 3] = want[:3, 3] * 0.33 + 0.5
    want[:3] = want[[1, 2, 0]]
    torch.testing.assert_close(cameras.to_ngp(cameras.from_opengl(nerf)), want, atol=1e-5, rtol=1e-5)


def test_look_at_and_field_of_view():
    eye, target, up = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 0.5, 0]), torch.tensor([0.0, 1, 0])
    camera = cameras.Camera(
        cameras.intrinsics_from_fov(math.pi / 2, 100, 60), cameras.look_at(eye, target, up), 100, 60
    )
    pixels, depth = camera.project(torch.stack([target, target + 0.1 * up]))
    torch.testing.assert_close(pixels[0], torch.tensor([50.0, 30.0]))
    assert pixels[1, 1] < 30 and abs(pixels[1, 0] - 50) < 1e-4
    torch.testing.assert_close(depth[0], (target - eye).norm())
    torch.testing.assert_close(camera.center, eye)
    assert camera.K[0, 0] == pytest.approx(50)
    torch.testing.assert_close(torch.linalg.det(camera.world_to_camera), torch.tensor(1.0))


def test_projection_is_differentiable_in_the_camera():
    camera = random_camera()
    points = points_seen_by(camera, 4)
    K, pose = camera.K.requires_grad_(), camera.world_to_camera.requires_grad_()
    assert torch.autograd.gradcheck(lambda k, p: cameras.Camera(k, p, 96, 64).clip(points), (K, pose))


def test_errors():
    camera = random_camera()
    with pytest.raises(ValueError, match="0 < near < far"):
        camera.clip_from_camera(2.0, 1.0)
    with pytest.raises(ValueError, match=r"give \(\.\.\., 3, 3\)"):
        cameras.Camera(torch.eye(4), torch.eye(4), 4, 4)
    with pytest.raises(ValueError, match="is empty"):
        cameras.Camera(torch.eye(3), torch.eye(4), 0, 4)
