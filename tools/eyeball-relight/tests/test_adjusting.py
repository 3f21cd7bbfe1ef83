"""Poses by pieces of skin: bundle adjustment on known points, and the whole way on pictures of the synthetic head."""

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from eyeball_relight import adjusting, assets, bundle, motion, synth
from eyeball_relight.frames import Frame, looking_at
from eyeball_relight.patches import Sightings
from recon4d import InputError, images
from recon4d.cameras import Camera
from recon4d.lenses import LensCamera

N, SIZE = 10, 176
MIDDLE = np.zeros(3)


def disturbed(poses, turn, shift, seed=0):
    """Poses (N, 4, 4), each turned about the origin and shifted by itself; radians and metres."""
    rng = np.random.default_rng(seed)
    out = poses.copy()
    noise = roma.rotvec_to_rotmat(torch.from_numpy(rng.normal(0, turn, (len(poses), 3)))).numpy()
    out[:, :3, :3] = noise @ poses[:, :3, :3]
    out[:, :3, 3] += rng.normal(0, shift, (len(poses), 3))
    return out


def away(poses, true, zoom=1.0):
    """How far poses are from the true ones, but for turn, place and size of all."""
    return motion.agreement(poses, motion.into_head(true, poses, MIDDLE, zoom), MIDDLE)


def test_bundle_adjustment_finds_cameras_points_and_focal_length():
    rng = np.random.default_rng(0)
    camera = synth.orbit(8, 200, 0)
    true, K = camera.world_to_camera.double().numpy(), camera.K.double().numpy()
    points = rng.normal(0, 0.05, (60, 3))
    view, piece = (x.ravel() for x in np.indices((8, 60)))
    there = np.einsum("pij,pj->pi", true[view, :3, :3], points[piece]) + true[view, :3, 3]
    pixel = (there / there[:, 2:] @ K.T)[:, :2]
    odd = rng.random(len(pixel)) < 0.1
    pixel[odd] += rng.normal(0, 20, (odd.sum(), 2))
    weight = np.tile(5 * np.eye(2), (len(pixel), 1, 1))
    wrong = K.copy()
    wrong[[0, 1], [0, 1]] *= 1.15
    begin = disturbed(true, 0.02, 0.003)
    begin[:, 2, 3] *= 1.15
    found = bundle.adjust(
        Sightings(view, piece, pixel, weight), begin, wrong, points + rng.normal(0, 0.002, points.shape), 0.004
    )
    assert abs(found.focal / K[0, 0] - 1) < 0.005
    left = away(found.world_to_camera, true, K[0, 0] / found.focal)
    assert left["degrees"] < 0.05 and left["mm"] < 0.05
    assert np.linalg.norm(found.left[~odd], axis=1).max() < 0.1 and found.trust[odd].max() < 0.5
    # what is not free stays
    kept = bundle.adjust(Sightings(view, piece, pixel, weight), begin, wrong, points, 0.004, free_focal=False)
    assert kept.focal == pytest.approx(wrong[0, 0])


def test_a_surface_settles_where_its_pieces_are_found_however_they_slide():
    rng = np.random.default_rng(1)
    axes = np.array([0.07, 0.10, 0.09])
    on = rng.normal(size=(600, 3))
    on /= np.linalg.norm(on, axis=1, keepdims=True)
    start, normals = axes * on, on / axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    other = on + rng.normal(0, 0.03, on.shape)  # another place of the same surface
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    true = roma.rotvec_to_rotmat(torch.tensor([0.01, 0.02, -0.015], dtype=torch.float64)).numpy()
    found = (axes * other) @ true.T + [0.001, 0.002, -0.001]
    found[::10] += 0.02 * rng.normal(size=found[::10].shape)
    turn, shift = adjusting.settling(start, found, np.ones(len(start)), normals)
    between = roma.rotmat_to_rotvec(torch.from_numpy(turn @ true.T)).norm()
    assert np.degrees(float(between)) < 0.3 and np.abs(shift - [0.001, 0.002, -0.001]).max() < 3e-4


def test_an_eyeball_goes_as_a_whole_with_what_is_around_it(head):
    still = head(torch.zeros(1, head.n_shape))[0]
    balls = [head.regions["left_eye"], head.regions["right_eye"]]
    from_pieces = adjusting.patches.pieces_of(head, still)
    start, normals = from_pieces.position.numpy(), from_pieces.normal.numpy()
    ahead = np.tile([0.0, 0.0, 0.002], (len(start), 1))
    moved = adjusting.following(still, start, ahead, np.ones(len(start)), normals, balls)
    for ball in balls:
        away = (moved - still)[ball]
        assert (away - away.mean(0)).abs().max() < 1e-6 and 0.001 < away[0, 2] < 0.002
    again = adjusting.patches.placed(head, still, from_pieces.corners, from_pieces.shares)
    assert torch.equal(again.position, from_pieces.position)


@pytest.fixture(scope="module")
def filmed(head, tmp_path_factory):
    """Pictures of the synthetic head with a flash, as frames with the true poses; its lens and vertices."""
    folder = tmp_path_factory.mktemp("skin")
    asset, _ = synth.head_asset(head, 3)
    shape = (0.6 * np.random.default_rng((3, 5)).standard_normal(head.n_shape)).astype(np.float32)
    still = head(torch.from_numpy(shape)[None])[0]
    still = still - (still.amin(0) + still.amax(0)) / 2
    camera = synth.orbit(N, SIZE, 3)
    frames = []
    for i, pose in enumerate(camera.world_to_camera):
        view = Camera(camera.K, pose, SIZE, SIZE)

        def shade(pixels, eye=view.center):
            return assets.lit_by_flash(pixels, eye, torch.full((3,), synth.INTENSITY))

        picture, coverage = assets.picture(asset, view, shade, 2)
        path = folder / f"{i:05d}.png"
        images.write_png(path, (torch.cat([picture.clamp(0, 1), coverage], -1).numpy() * 255 + 0.5).astype(np.uint8))
        frames.append(Frame(path.stem, path, pose.double().numpy(), looking_at(pose[:3, 3].double().numpy())))
    return frames, LensCamera(camera.K.double().numpy(), SIZE, SIZE), still


def test_skin_mends_a_track(head, filmed):
    frames, lens, still = filmed
    true = np.stack([f.world_to_camera for f in frames])
    begin = disturbed(true, 0.015, 0.002)
    begin[:, :3, 3] *= [1, 1, 1.1]
    K = lens.K.copy()
    K[[0, 1], [0, 1]] *= 1.1
    views = [replace(f, world_to_camera=pose) for f, pose in zip(frames, begin)]
    said = []
    kept, mended, _, summary = adjusting.refine(
        views, replace(lens, K=K), head, still, MIDDLE, optional=True, log=said.append
    )
    assert summary["poses"] == "skin" and len(kept) == N and "skin places 10 of 10" in said[0]
    found = np.stack([f.world_to_camera for f in kept])
    before = away(begin, true, 1 / 1.1)
    after = away(found, true, lens.K[0, 0] / mended.K[0, 0])
    assert after["degrees"] < 0.5 * before["degrees"] and after["mm"] < 0.5 * before["mm"], (before, after)
    assert abs(mended.K[0, 0] / lens.K[0, 0] - 1) < 0.04
    for frame in kept:  # the capture's cameras look at the head
        assert np.allclose((frame.turn @ frame.world_to_camera[:3, 3])[:2], 0, atol=1e-9)


def test_skin_without_texture_keeps_the_track(head, filmed, tmp_path):
    frames, lens, still = filmed
    plain = []
    for frame in frames[:5]:
        picture = images.read(frame.file, "RGBA").copy()
        picture[..., :3] = 128
        images.write_png(tmp_path / frame.file.name, picture)
        plain.append(replace(frame, file=tmp_path / frame.file.name))
    said = []
    kept, same, _, summary = adjusting.refine(plain, lens, head, still, MIDDLE, True, said.append)
    assert kept is plain and same is lens and summary["poses"] == "track" and "places 0 of 5" in said[0]
    with pytest.raises(InputError, match="too small or too plain"):
        adjusting.refine(plain, lens, head, still, MIDDLE, False, said.append)
