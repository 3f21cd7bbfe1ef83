"""The vector's layout, and the encoder's view: crops, cameras and the way back to the image."""

import numpy as np
import pytest
import roma
import torch
from flame_encoder.encoder import rendering, vector
from flame_encoder.encoder.crop import CROP_SCALE, CropView, box_of, crops_of, cut_out, focal_of, image_pose, pose
from flame_encoder.encoder.vector import Layout
from recon4d import head
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="module")
def model():
    return head.load()


def random_parts(n, layout, seed=0):
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(n, rng).as_matrix()
    six = torch.from_numpy(rotations[:, :2].reshape(n, 6).astype(np.float32))
    vectors = torch.from_numpy(0.2 * rng.standard_normal((n, layout.size)).astype(np.float32))
    return layout.split(vectors) | {"global_rot": six}, rotations


def test_layouts():
    layout = Layout()
    assert layout.size == 227
    assert list(layout.lengths.values()) == [100, 50, 6, 3, 6, 3, 3, 56]
    first = Layout(shape=100, expression=0, detail=106)
    assert first.size == 227 and list(first.lengths.values()) == [100, 0, 6, 3, 6, 3, 3, 106]
    vectors = torch.randn(4, 227)
    for one in (layout, first):
        assert torch.equal(one.join(one.split(vectors)), vectors)
    short = layout.split(vectors) | {"shape": vectors[:, :10]}
    assert torch.equal(layout.join(short)[:, 10:100], torch.zeros(4, 90))
    with pytest.raises(ValueError, match="has 9 numbers, but the layout has 227"):
        layout.split(torch.zeros(1, 9))
    with pytest.raises(ValueError, match="shape has 101 numbers"):
        layout.join(layout.split(vectors) | {"shape": torch.zeros(4, 101)})


def test_what_the_vector_means_to_the_head(model):
    layout = Layout()
    parts, _ = random_parts(3, layout)
    arguments = vector.head_arguments(model, parts)
    assert arguments["expression"].shape == (3, 44) and arguments["shape"].shape == (3, 100)
    assert torch.equal(arguments["eyelids"], parts["expression"][:, 44:46])
    jaw = Rotation.from_rotvec(parts["jaw"].numpy()).as_matrix()
    np.testing.assert_allclose(arguments["jaw"].numpy(), jaw, atol=1e-6)
    right = Rotation.from_rotvec(parts["eyes"][:, 3:].numpy()).as_matrix()
    np.testing.assert_allclose(arguments["eyes"][:, 1].numpy(), right, atol=1e-6)
    without = Layout(shape=100, expression=0, detail=106).split(torch.zeros(3, 227))
    assert "eyelids" not in vector.head_arguments(model, without)
    albedo = vector.albedo(model, parts | {"detail": torch.zeros(3, 56)})
    assert torch.equal(albedo[2], model.albedo_mean)
    neutral = vector.light({"detail": torch.zeros(1, 56)})[0]
    assert neutral[0, 0] / (4 * np.pi) ** 0.5 == pytest.approx(0.8) and neutral[1:].abs().max() == 0


def test_mean_head_fills_the_view(model):
    """At rest the face stands in the middle, at the size that a crop around its landmarks gives it."""
    for view in (CropView(), CropView(fov=14.0, size=112)):
        parts = Layout().split(torch.zeros(1, 227)) | {"global_rot": torch.tensor([vector.IDENTITY_6D])}
        camera = rendering.placed(view, rendering.turned(model, parts), parts["transl"])
        points = model.landmarks(camera)[0] @ view.K.T
        points = points[:, :2] / points[:, 2:]
        middle = (points.amax(0) + points.amin(0)) / 2
        assert (middle - view.size / 2).abs().max() < 0.1 * view.size
        side = (points.amax(0) - points.amin(0)).max().item()
        assert view.size / side == pytest.approx(CROP_SCALE, rel=0.12)


def test_pose_in_the_image(model):
    """A head on the axis of the image's camera is projected to where the crop's camera saw it."""
    view = CropView(fov=14.0, size=112)
    parts, rotations = random_parts(5, Layout())
    parts["transl"] = parts["transl"] * torch.tensor([0.2, 0.2, 1.0])
    rotation = torch.from_numpy(rotations.astype(np.float32))
    crops = torch.tensor([[220.0, 140.0, 200.0]]).expand(5, 3)  # its middle is the image's: (320, 240)
    seen_with = focal_of(view, crops)[0].item()
    K = torch.tensor([[seen_with, 0, 320.0], [0, seen_with, 240.0], [0, 0, 1]])
    R, t = image_pose(model, view, rotation, parts["transl"], crops, K)
    R0, t0 = pose(model, view, rotation, parts["transl"])
    torch.testing.assert_close(R, R0)
    torch.testing.assert_close(t, t0, atol=1e-5, rtol=1e-4)
    upright = rendering.placed(
        view, rendering.turned(model, parts | {"global_rot": rotation[:, :2].flatten(1)}), parts["transl"]
    )
    arguments = vector.head_arguments(model, parts)
    torch.testing.assert_close(model(**arguments) @ R.transpose(1, 2) + t[:, None], upright, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("times", [1.0, 3.0])
def test_pose_in_a_corner_of_an_image(model, times):
    """Elsewhere, and with another focal length, the head still covers the pixels that the crop's camera saw."""
    view = CropView(fov=14.0, size=112)
    parts, _ = random_parts(6, Layout(), seed=2)
    parts = {name: 0.3 * part for name, part in parts.items()}
    rotation = roma.rotvec_to_rotmat(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 0.4)
    crops = torch.tensor([[30.0, 40.0, 180.0]]).expand(6, 3)
    focal = times * focal_of(view, crops)[0].item()
    K = torch.tensor([[focal, 0, 320.0], [0, focal, 240.0], [0, 0, 1]])
    R, t = image_pose(model, view, rotation, parts["transl"], crops, K)
    torch.testing.assert_close(R @ R.transpose(1, 2), torch.eye(3).expand(6, 3, 3), atol=1e-5, rtol=0)
    arguments = vector.head_arguments(model, parts)
    points = model.landmarks(model(**arguments) @ R.transpose(1, 2) + t[:, None]) @ K.T
    points = points[..., :2] / points[..., 2:]
    R0, t0 = pose(model, view, rotation, parts["transl"])
    seen = model.landmarks(model(**arguments) @ R0.transpose(1, 2) + t0[:, None]) @ view.K.T
    seen = seen[..., :2] / seen[..., 2:] * (180 / 112) + crops[:, None, :2]
    assert (points - seen).norm(dim=-1).mean() < 0.03 * 180  # perspective changes with the distance, no more


def test_crop_is_what_was_cut_out():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((2, 3, 40, 60), np.float32))
    crops = torch.tensor([[10.0, 5.0, 24.0], [-6.0, 20.0, 24.0]])
    out = cut_out(images, crops, 24)
    torch.testing.assert_close(out[0], images[0, :, 5:29, 10:34])
    torch.testing.assert_close(out[1, :, :20, 6:], images[1, :, 20:40, 0:18])
    torch.testing.assert_close(out[1, :, 20:, 6:], images[1, :, 39:40, 0:18].expand(3, 4, 18))  # the border goes on
    half = cut_out(images, crops[:1].expand(2, 3), 12)  # antialiased: about the mean of each four pixels
    mean = images[:, :, 5:29, 10:34].unflatten(2, (12, 2)).unflatten(4, (12, 2)).mean((3, 5))
    assert (half - mean).abs().mean() < 0.12 * mean.std() + 0.05
    boxes = box_of(torch.tensor([[[10.0, 20.0], [50.0, 40.0]]]))
    assert boxes.tolist() == [[10, 20, 50, 40]]
    assert crops_of(boxes).tolist() == [[-2, -2, 64]]
