"""The second stage of encoding: the solver on landmarks, one identity for many pictures, light and skin."""

from dataclasses import replace

import numpy as np
import pytest
import recon4d.head
import roma
import torch
from flame_encoder.encoder import crop, rendering, skin, vector
from flame_encoder.encoder.crop import CropView
from flame_encoder.encoder.face_boxes import Where, box_around
from flame_encoder.encoder.trained import Encoder
from flame_encoder.encoder.vector import Layout
from flame_encoder.people import photographs, refine
from flame_encoder.people.refine import Belief
from recon4d.cameras import project
from recon4d.head import with_uv
from scipy.spatial.transform import Rotation

VIEW, LAYOUT = CropView(fov=14.0, size=112), Layout()
SIZE = (320, 240)


@pytest.fixture(scope="module")
def head():
    """Without what a landmarker does to turned heads: its points are where they should be."""
    model = with_uv(recon4d.head.load())
    return replace(model, dense=replace(model.dense, bias=torch.zeros_like(model.dense.bias)))


def points_of(head, parts, R, t, K):
    """MediaPipe's 478 points of a head, pixels: exact."""
    vertices = head(**vector.head_arguments(head, parts)) @ R.transpose(1, 2) + t[:, None]
    dense = head.dense
    surface = (vertices[:, head.faces[dense.faces]] * dense.bary[..., None]).sum(2)[0]
    points = np.full((478, 2), np.nan)
    points[dense.indices.numpy()] = project(surface, K, torch.eye(4))[0].numpy()
    return points


@pytest.fixture(scope="module")
def seen(head):
    """Three pictures of one person: true parts, crops, points, and the camera."""
    generator = torch.Generator().manual_seed(3)
    shape = 0.9 * torch.randn(1, 100, generator=generator)
    K = torch.tensor([[640.0, 0, 160], [0, 640, 120], [0, 0, 1]])
    found = []
    for yaw in (-25, 0, 30):
        rotation = torch.from_numpy(Rotation.from_euler("YX", [yaw, 8], degrees=True).as_matrix()).float()[None]
        expression = torch.zeros(1, 50)
        expression[0, list(head.expression_names).index("mouthSmileLeft")] = 0.7
        parts = {
            "shape": shape, "expression": expression, "global_rot": rotation[:, :2].flatten(1),
            "jaw": torch.tensor([[0.15, 0, 0]]), "eyes": torch.zeros(1, 6), "neck": torch.zeros(1, 3),
            "transl": torch.tensor([[0.02, -0.01, 0.1]]), "detail": torch.zeros(1, 56),
        }  # fmt: skip
        square = torch.tensor([[95.0, 50.0, 130.0]])
        R, t = crop.image_pose(head, VIEW, rotation, parts["transl"], square, K)
        points = points_of(head, parts, R, t, K)
        found.append((LAYOUT.join(parts)[0], square[0], points))
    return found, K


def test_a_pose_comes_back(head, seen):
    """`vector_pose` undoes `image_pose`, for any focal length."""
    (truth, square, _), *_ = seen[0]
    parts = LAYOUT.split(truth[None])
    rotation = rendering.from_6d(parts["global_rot"])
    for focal in (200.0, 900.0):
        K = torch.tensor([[focal, 0, 100], [0, focal, 150], [0, 0, 1]])
        R, t = crop.image_pose(head, VIEW, rotation, parts["transl"], square[None], K)
        again, transl = crop.vector_pose(head, VIEW, R, t, square[None], K)
        torch.testing.assert_close(again, rotation, atol=1e-5, rtol=0)
        torch.testing.assert_close(transl, parts["transl"], atol=1e-4, rtol=0)


def test_exact_points_give_the_head(head, seen):
    """From the mean head, one picture and three together; the vector that comes out is the head in its picture."""
    found, K = seen
    rig = refine.rig_of(head, LAYOUT)
    pictures = []
    rest = torch.zeros(LAYOUT.size)
    rest[150:156] = torch.tensor(vector.IDENTITY_6D)
    for _, square, points in found:
        observed = refine.seen(points, SIZE)
        pictures.append(refine.picture(rig, LAYOUT, VIEW, rest, square, None, observed, focal=640.0))
    belief = Belief(torch.zeros(100, dtype=torch.float64), torch.eye(100, dtype=torch.float64))

    def error(shape):
        ours, theirs = head(shape.float()[None])[0], head(found[0][0][None, :100])[0]
        R, t = roma.rigid_points_registration(ours, theirs)
        return 1000 * (ours @ R.T + t - theirs).norm(dim=1).mean().item()

    one, _, covariance = refine.solve(pictures[:1], belief)
    three, each, surer = refine.solve(pictures, belief)
    mean = error(torch.zeros(100))
    assert error(one) < 0.8 * mean and error(three) < 0.65 * mean and error(three) < error(one)
    assert surer.diagonal().mean() < covariance.diagonal().mean() < 1
    for (truth, square, points), mine, picture in zip(found, each, pictures):
        made, focal = refine.vector_of(rig, LAYOUT, VIEW, truth, square, three, mine, picture)
        parts = LAYOUT.split(made[None])
        R, t = crop.image_pose(head, VIEW, rendering.from_6d(parts["global_rot"]), parts["transl"], square[None], K)
        assert focal == pytest.approx(640, rel=1e-3)
        off = np.linalg.norm(points_of(head, parts, R, t, K) - points, axis=1)
        assert np.nanmean(off) < 0.6
        assert parts["jaw"][0, 0] == pytest.approx(0.15, abs=0.08)
        assert parts["expression"][0, list(head.expression_names).index("mouthSmileLeft")] > 0.35


def test_a_sure_network_is_believed(head, seen):
    (_, square, points), *_ = seen[0]
    rig = refine.rig_of(head, LAYOUT)
    rest = torch.zeros(LAYOUT.size)
    rest[150:156] = torch.tensor(vector.IDENTITY_6D)
    observed = refine.seen(points, SIZE)
    sure = Belief(torch.full((100,), 0.3, dtype=torch.float64), 1e9 * torch.eye(100, dtype=torch.float64))
    picture = refine.picture(rig, LAYOUT, VIEW, rest, square, torch.full((LAYOUT.size,), 0.01), observed)
    shape, *_ = refine.solve([picture], sure)
    torch.testing.assert_close(shape, sure.mean, atol=1e-3, rtol=0)


class Answers(torch.nn.Module):
    """A network that always gives the same answer."""

    def __init__(self, vector):
        super().__init__()
        self.vector = vector
        self.mean = torch.zeros(3, 1, 1)

    def forward(self, images, points=None, seen=None):
        return self.vector.expand(len(images), -1)


def test_light_and_skin_come_from_the_picture(head, seen):
    """A drawn head gives its own light and skin back, when the network knows its shape but takes them for average."""
    (truth, _, _), *_ = seen[0]
    small = rendering.reduced(head)
    detail = torch.zeros(56)
    detail[:27] = 0.25 * torch.randn(27, generator=torch.Generator().manual_seed(0))
    detail[27:35] = torch.tensor([1.2, -0.8, 0.6, 0.5, -0.6, 0.9, 0, 0])
    parts = LAYOUT.split(truth[None]) | {"detail": detail[None]}
    picture, _ = rendering.render(small, parts, VIEW)
    image = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
    face = Where(box_around(np.full((478, 2), 50.0)), None, True)
    encoder = Encoder(Answers(truth), LAYOUT, VIEW, head, "none")
    found = photographs.as_encoding(
        encoder, ["a"], [(112, 112)], truth[None], torch.tensor([[0.0, 0.0, 112.0]]), [face]
    )
    sigma = torch.full((56,), 0.8)
    made = skin.fit(small, found, 0, torch.from_numpy(image).permute(2, 0, 1) / 255, torch.zeros(56), sigma)
    goal, before, after = (
        rendering.render(small, LAYOUT.split(truth[None]) | {"detail": one[None]}, VIEW)[0]
        for one in (detail, torch.zeros(56), made)
    )
    assert (after - goal).abs().mean() < 0.25 * (before - goal).abs().mean()
    textures = [vector.albedo(small, {"detail": one[None]}) for one in (detail, torch.zeros(56), made)]
    assert (textures[2] - textures[0]).abs().mean() < 0.7 * (textures[1] - textures[0]).abs().mean()
