"""Training: schedules, colour initialisation, losses, learning, resuming, memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian_avatar import (
    avatars,
    box_means,
    captures,
    evaluation,
    exports,
    learners,
    losses,
    memory,
    model_file,
    motions,
    rendering,
    runs,
    training,
    unseen,
)
from gaussian_avatar.backgrounds import composite, random_backgrounds
from gaussian_avatar.config import Losses, load_config
from plyfile import PlyData
from recon4d import InputError, metrics, splat
from recon4d.runs import batch_places
from scipy.spatial.transform import Rotation

SMALL = [
    "model.tex_size=40",
    "model.basis=6",
    "model.hidden=32",
    "train.batch_size=5",
    "train.blend_start=100",
    "data.image_size=null",
]


def small_config(*more):
    return load_config("cpu-quick", [*SMALL, *more])


def prepared(head, data_dir, config, split="train"):
    capture = captures.open_capture(data_dir / "one", config.data.image_size, lambda _: None)
    frames = captures.choose_frames(capture, config, split, lambda _: None)
    motion = motions.resized(motions.from_track(capture.track, head), capture.width, capture.height)
    return capture, motion, frames, captures.preload(capture, frames)


def run_training(head, data_dir, output, config, log=lambda _: None, resume=False):
    output.mkdir(exist_ok=True)
    capture, motion, frames, images = prepared(head, data_dir, config)
    return training.train(
        config, capture, motion, head, frames, images, output, torch.device("cpu"), resume=resume, log=log
    )


def held_out_psnr(head, data_dir, folder, config):
    _, motion, frames, images = prepared(head, data_dir, config, "test")
    avatar = model_file.read_ply(folder / "model.ply", head, motion.inputs.shape[1])
    camera = motion.camera
    black = torch.zeros(len(frames), 3)
    target, mask = composite(images, black)
    with torch.no_grad():
        splats, _ = avatars.deform(
            avatar, head, motion.vertices[frames], motion.inputs[frames], camera.world_to_camera, one_sided=True
        )
        image, _ = avatars.rasterize(splats, camera, black)
    return float(metrics.psnr(*(x.permute(0, 3, 1, 2) for x in (image, target, mask))).mean())


def test_it_learns_the_capture(head, data_dir, tmp_path):
    before, after = small_config("train.iterations=5"), small_config("train.iterations=600")
    run_training(head, data_dir, tmp_path / "before", before)
    result = run_training(head, data_dir, tmp_path / "after", after)
    first = held_out_psnr(head, data_dir, tmp_path / "before", before)
    last = held_out_psnr(head, data_dir, tmp_path / "after", after)
    # The colours of the first batch's pixels alone give about 19 dB.
    assert last > 26 and last > first + 3
    assert result.images == 600 and result.gaussians == len(avatars.bind(head, 40)[0])
    assert (tmp_path / "after" / "speed.txt").read_text().startswith("Training FPS: ")
    assert sorted(path.name for path in (tmp_path / "after").iterdir()) == [
        "checkpoint.pt",
        "model.ply",
        "speed.txt",
    ]


class Killed(Exception):
    pass


def test_resuming_equals_never_stopping(head, data_dir, tmp_path):
    config = small_config("train.iterations=200", "train.checkpoint_every=120")
    run_training(head, data_dir, tmp_path / "whole", config)

    def stop(message):
        if message.startswith("image 120"):
            raise Killed

    with pytest.raises(Killed):
        run_training(head, data_dir, tmp_path / "parts", config, log=stop)
    assert not (tmp_path / "parts" / "model.ply").exists()
    lines = []
    result = run_training(head, data_dir, tmp_path / "parts", config, log=lines.append, resume=True)
    assert lines[0] == "resumed at image 120" and result.images == 200
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["images"] == 200
    whole, parts = (PlyData.read(tmp_path / name / "model.ply")["vertex"].data for name in ("whole", "parts"))
    for name in whole.dtype.names:
        scale = np.abs(whole[name]).max() + 1e-6
        # Adam divides by the gradient's size, so a Gaussian whose gradient is rounding noise may step either way.
        different = np.abs(whole[name] - parts[name]) > 1e-3 * scale
        assert different.mean() < 0.01, name


def test_resume_without_or_with_a_foreign_checkpoint(head, data_dir, tmp_path):
    config = small_config("train.iterations=10")
    with pytest.raises(InputError, match=r"checkpoint\.pt does not exist"):
        run_training(head, data_dir, tmp_path, config, resume=True)
    run_training(head, data_dir, tmp_path, config)
    with pytest.raises(InputError, match="does not fit this run"):
        run_training(head, data_dir, tmp_path, small_config("model.basis=4"), resume=True)
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        run_training(head, data_dir, tmp_path, config, resume=True)


def test_initial_colours_against_a_dense_composite(head, data_dir):
    config = small_config("model.tex_size=20")
    _, motion, frames, images = prepared(head, data_dir, config)
    frames, images = frames[:2], images[:2]
    size = motion.camera.width
    generator = torch.Generator().manual_seed(0)
    avatar = avatars.new(head, 20, motion.inputs.shape[1], 2, 8, 0.006, 0.5, generator)
    splats, _ = avatars.deform(
        avatar, head, motion.vertices[frames], motion.inputs[frames], motion.camera.world_to_camera, blend=False
    )
    camera = motion.camera
    colours, weights = learners.covered_colours(splats, camera, images)

    # EWA projection and front-to-back compositing of every Gaussian at every pixel, in float64.
    centres = torch.arange(size).double() + 0.5
    pixels = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).view(-1, 2)
    sums, totals = torch.zeros(len(avatar), 3).double(), torch.zeros(len(avatar)).double()
    E, K = motion.camera.world_to_camera.double(), motion.camera.K.double()
    for b in range(len(frames)):
        points = splats.means[b].double() @ E[:3, :3].T + E[:3, 3]
        x, y, z = points.unbind(-1)
        J = torch.zeros(len(avatar), 2, 3).double()
        J[:, 0, 0], J[:, 1, 1] = K[0, 0] / z, K[1, 1] / z
        J[:, 0, 2], J[:, 1, 2] = -K[0, 0] * x / z**2, -K[1, 1] * y / z**2
        # All scales are equal here, so rotations drop out.
        covariance = J @ J.transpose(1, 2) * 0.006**2 + 0.3 * torch.eye(2)
        at = torch.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], -1)
        offset = pixels[:, None] - at
        power = 0.5 * torch.einsum("pni,nij,pnj->pn", offset, torch.linalg.inv(covariance), offset)
        alpha = (0.5 * torch.exp(-power)).clamp_max(0.999)
        alpha[alpha < 1 / 255] = 0
        order = z.argsort()
        ahead = torch.cumprod(1 - alpha[:, order], 1)
        share = torch.zeros_like(alpha)
        share[:, order] = alpha[:, order] * torch.cat([torch.ones(len(pixels), 1), ahead[:, :-1]], 1)
        share[:, order] *= ahead > 1e-4
        rgba = images[b].double().view(-1, 4) / 255
        sums += share.T @ (rgba[:, :3] * rgba[:, 3:])
        totals += share.T @ rgba[:, 3]
    assert (weights.double() - totals).abs().max() < 0.02 * totals.max()
    seen = totals > 0.1
    assert seen.sum() > 50
    expected = sums[seen] / totals[seen, None]
    assert (colours[seen].double() - expected).abs().max() < 0.02

    assert learners.initialise_colours(avatar, splats, camera, images, 0.1, paint=False)
    assert not avatar.sh0.any() and torch.equal(avatar.seen, weights > 0.1)
    avatar.seen[:] = False
    fresh = learners.initialise_colours(avatar, splats, camera, images, 0.1)
    assert fresh and torch.equal(avatar.seen, weights > 0.1)
    torch.testing.assert_close(0.5 + splat.SH0 * avatar.sh0[avatar.seen], colours[avatar.seen])
    assert not avatar.sh0[~avatar.seen].any()
    assert not learners.initialise_colours(avatar, splats, camera, images, 0.1)  # once only


def test_position_rate_is_the_papers():
    rates = load_config("offline").train.rates
    start, middle, end, after = (learners.learning_rates(rates, n, n / 50000) for n in (0, 15000, 30000, 50000))
    assert start["means"] == pytest.approx(8e-4) and middle["means"] == pytest.approx(8e-5)
    assert end["means"] == after["means"] == pytest.approx(8e-6)
    assert start["mean_basis"] == pytest.approx(0.05 * 8e-4)
    assert (start["quat_basis"], start["sh0_basis"]) == pytest.approx((0.0025, 0.00625))
    assert (after["opacity_logits"], after["log_scales"], after["quats"]) == (0.25, 0.025, 0.005)
    assert (after["sh0"], after["mlp"]) == (0.0125, 0.001)
    delayed = rates.model_copy(update={"position_delay_images": 1000})
    assert learners.learning_rates(delayed, 0, 0.0)["means"] == pytest.approx(8e-6)


def test_long_clips_are_learned_for_longer():
    config = load_config("cpu-quick")
    assert [training.planned_images(config, n) for n in (20, 184, 1000)] == [4000, 4000, 12000]
    assert training.planned_images(small_config("train.iterations=60"), 1000) == 60
    rates = config.train.rates
    ends = [learners.learning_rates(rates, n, 1.0)["means"] for n in (4000, 12000)]
    assert ends == [pytest.approx(rates.position_final)] * 2


def test_each_pass_shows_every_frame_once():
    shown = np.concatenate([batch_places(step, 4, 10, seed=1) for step in range(5)])
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert list(shown[:10]) != list(shown[10:])
    assert (batch_places(3, 4, 10, seed=1) == shown[12:16]).all()
    assert not torch.equal(random_backgrounds(0, 3, 1), random_backgrounds(3, 3, 1))


def test_loss_terms(head):
    avatar = avatars.new(head, 16, 4, 3, 8, None, 0.5, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    image, target = (torch.rand(2, 32, 32, 3, generator=generator) for _ in range(2))
    alpha, mask = (torch.rand(2, 32, 32, 1, generator=generator) for _ in range(2))
    weights = torch.tensor([[1.0, -2.0, 0.0]])
    avatar.mean_basis[0], avatar.mean_basis[1] = 1.0, 2.0  # parallel; the rest is zero
    weighted = Losses(
        ssim=2.0,
        alpha=1.0,
        sparsity=3.0,
        orthogonality=1.0,
        offset=1.0,
        size=1.0,
        smooth=1.0,
        basis=1.0,
        opaque=1.0,
    )
    base = avatar.log_scales[:, :1].clone()
    avatar.log_scales.add_(float(np.log(8)))
    avatar.means.copy_(2 * base.exp().expand(-1, 3))
    pairs = torch.tensor([[0, 1], [2, 3]])
    avatar.sh0[1] += 3.0
    terms = losses.image_terms(weights, image, alpha, target, mask, weighted, 0)
    terms |= losses.prior_terms(avatar, weighted, base, pairs, pairs[0])
    assert float(terms["l1"]) == pytest.approx(float((image - target).abs().mean()))
    assert float(terms["alpha"]) == pytest.approx(float((alpha - mask).abs().mean()))
    assert float(terms["sparsity"]) == pytest.approx(3.0)
    assert float(terms["orthogonality"]) == pytest.approx(1.0)
    assert float(terms["offset"]) == pytest.approx(4.0, rel=1e-4)
    assert float(terms["size"]) == pytest.approx(np.log(2) ** 2, rel=1e-4)
    # Of 2 pairs and 10 attributes only 3 colours of one pair differ ...
    difference = (avatar.log_scales - base).diff(dim=0)[[0, 2]].square().sum()
    assert float(terms["smooth"]) == pytest.approx((3 * 9 + float(difference)) / 20, rel=1e-3)
    assert float(terms["opaque"]) == pytest.approx(0.5)
    per_vector = float((1 / base.exp()).square().mean())
    assert float(terms["basis"]) == pytest.approx((1 + 4) / 3 * per_vector, rel=1e-3)
    boxes = [
        np.lib.stride_tricks.sliding_window_view(x.double().numpy(), (12, 12), (1, 2))[:, ::4, ::4]
        for x in (image, target)
    ]
    (ma, mb), (va, vb) = ([x.mean((-1, -2)) for x in boxes], [x.var((-1, -2)) for x in boxes])
    covariance = (boxes[0] * boxes[1]).mean((-1, -2)) - ma * mb
    peer = (2 * ma * mb + 1e-4) * (2 * covariance + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert float(terms["ssim"]) == pytest.approx(2 * (1 - peer.mean()), abs=1e-4)
    avatar.log_scales.copy_(base + torch.tensor([-2.0, 1.0, -3.0]))  # too short, long enough, thin
    only = Losses(cover=1.0)
    terms = losses.prior_terms(avatar, only, base, pairs, pairs[0])
    assert set(terms) == {"cover"} and float(terms["cover"]) == pytest.approx(2.0)
    shade = (torch.tensor(losses.DARK) - 0.5) / splat.SH0
    avatar.sh0[2:4] = torch.stack([shade, shade + 2])
    terms = losses.prior_terms(avatar, Losses(dark=0.5), base, pairs, torch.tensor([2, 3]))
    assert set(terms) == {"dark"} and float(terms["dark"]) == pytest.approx(1.0)


def test_box_means_in_one_pass():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.rand(2, 3, 21, 30, 3, generator=generator)  # neither side is a multiple of the boxes'
    slopes = torch.rand(3, 5, 7, 5, 3, generator=generator)
    found, peer = (x.clone().requires_grad_(True) for x in (a, a))
    means, expected = box_means.box_means(found, b), box_means.torch_box_means(peer, b)
    torch.testing.assert_close(means, expected)
    torch.testing.assert_close(means[1, 2, 3, 4], (a * b)[1, 8:12, 12:16].mean((0, 1)))
    (means * slopes).sum().backward()
    (expected * slopes).sum().backward()
    torch.testing.assert_close(found.grad, peer.grad)
    assert found.grad[:, 20:].abs().max() == 0


def test_neighbours_are_next_to_each_other(head):
    face_id, bary = avatars.bind(head, 32)
    pairs = avatars.neighbours(head, 32)
    points = (bary[:, :, None] * head.v_template[head.faces[face_id]]).sum(1)
    uv = (bary[:, :, None] * head.vt[head.ft[face_id]]).sum(1) * 32
    steps = (uv[pairs[:, 0]] - uv[pairs[:, 1]]).abs()
    torch.testing.assert_close(steps.sum(1), torch.ones(len(pairs)), atol=1e-3, rtol=0)
    apart = (points[pairs[:, 0]] - points[pairs[:, 1]]).norm(dim=1)
    assert len(pairs) > 1.3 * len(face_id) and apart.max() < 0.1
    assert pairs.unique().numel() > 0.95 * len(face_id)


def test_images_too_small_for_the_structural_similarity(head, data_dir, tmp_path):
    with pytest.raises(InputError, match=r"train\.losses\.ssim needs images of 12 pixels a side, not 8x8"):
        run_training(head, data_dir, tmp_path, small_config("data.image_size=8"))


def test_too_much_memory_says_what_fits(head, data_dir):
    config = small_config("model.tex_size=60000")
    capture = captures.open_capture(data_dir / "one", None, lambda _: None)
    with pytest.raises(InputError, match=r"model.tex_size 60000 needs about .* GiB .*; \d+ fits") as caught:
        memory.check(config, capture, head, np.arange(20), torch.device("cpu"))
    fits = int(str(caught.value).split(";")[1].split()[0])
    memory.check(small_config(f"model.tex_size={fits}"), capture, head, np.arange(20), torch.device("cpu"))
    with pytest.raises(InputError, match=r"--set train.batch_size=3"):
        memory.check(small_config(), capture, head, np.arange(3), torch.device("cpu"))


def test_pictures_are_on_the_host_whatever_the_device(head, data_dir, monkeypatch):
    config, cuda = small_config(), torch.device("cuda")
    capture = captures.open_capture(data_dir / "one", None, lambda _: None)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1e12 if device.type == "cuda" else 2e5)
    with pytest.raises(InputError, match=r"20 pictures of 64x64 need .* use --set data.preload=false"):
        memory.check(config, capture, head, np.arange(20), cuda)
    memory.check(small_config("data.preload=false"), capture, head, np.arange(20), cuda)
    with pytest.raises(InputError, match="on cpu"):  # there they take from the same
        memory.check(config, capture, head, np.arange(20), torch.device("cpu"))


def test_from_python(head, data_dir, tmp_path):
    """What the commands do, without them."""
    result = training.start(
        tmp_path / "one/w", data_dir / "one", "cpu-quick", [*SMALL, "train.iterations=10"], seed=4, log=lambda _: None
    )
    assert result.images == 10 and result.folder == str(tmp_path / "one/w")
    run = runs.open_run(result.folder, "cpu")
    assert (run.config.seed, run.config.data_dir, run.config.output_dir) == (4, str(data_dir), str(tmp_path))
    assert evaluation.evaluate(run, log=lambda _: None)["frames"] == 4
    assert rendering.write_render(run, alpha=True)["frames"] == 24
    assert exports.export_frames(run, jaw=10)["files"] == 1
    assert exports.export_compact(run)["gaussians"] > 0
    config = run.config.model_copy(update={"seed": 5})
    again = training.start(tmp_path / "one/x", config=config, log=lambda _: None)
    assert again.images == 10 and runs.open_run(again.folder).config.seed == 5


def test_unseen_gaussians_take_after_those_around_them(head):
    """Harmonic, by definition: each is the mean of its neighbours, and none exceeds what was seen."""
    avatar = avatars.new(head, 48, 8, 2, 8, None, 0.5, torch.Generator().manual_seed(0))
    points = (avatar.bary[..., None] * head.v_template[head.faces[avatar.face_id]]).sum(1)
    base = avatar.log_scales[:, :1].clone()
    avatar.sh0.copy_(points * 10)  # a colour that changes evenly over the head
    avatar.log_scales.add_(0.7)
    avatar.mean_basis.fill_(1.0)
    hole = (points - points[len(points) // 2]).norm(dim=1) < 0.03
    true = avatar.sh0.clone()
    avatar.sh0[hole] = 99.0
    avatar.log_scales[hole] = 3.0
    avatar.seen[:] = ~hole
    background = int(hole.nonzero()[0])  # training has found nothing there
    avatar.opacity_logits[background] = -4
    hole[background] = False
    assert unseen.fill(avatar, head, base, 0.5) == int(hole.sum()) > 20
    assert not avatar.seen[background] and avatar.opacity_logits[background] == -4
    others = torch.arange(len(avatar)) != background
    assert avatar.seen[others].all() and not avatar.mean_basis[:, hole].any() and avatar.mean_basis[:, ~hole].all()
    torch.testing.assert_close(avatar.log_scales[others], (base + 0.7).expand(-1, 3)[others], atol=1e-4, rtol=0)
    torch.testing.assert_close(avatar.sh0[~hole & others], 10 * points[~hole & others])
    assert (avatar.sh0[hole] - true[hole]).abs().max() < 0.5 * (
        true[hole].max(0).values - true[hole].min(0).values
    ).max()
    assert unseen.fill(avatar, head, base, 0.5) == 0


def test_pose_correction_finds_a_pose_that_is_wrong(head, data_dir, tmp_path):
    """One frame's pose is a degree and a few millimetres off: the learned correction turns it back."""
    config = small_config("train.iterations=700", "train.refine_pose=true", "train.rates.pose=2e-3")
    capture, motion, frames, images = prepared(head, data_dir, config)
    angle = torch.tensor([[0.0, 0.03, 0.0]])
    wrong = torch.cat([angle, torch.tensor([[0.03, 0.0, 0.0]])], 1)
    vertices = motion.vertices.clone()
    centre = vertices[4].mean(0)
    R = torch.from_numpy(Rotation.from_rotvec(angle[0].numpy()).as_matrix()).float()
    vertices[4] = (vertices[4] - centre) @ R.T + centre + 0.1 * wrong[0, 3:]
    moved = replace(motion, vertices=vertices)
    training.train(config, capture, moved, head, frames, images, tmp_path, torch.device("cpu"), log=lambda _: None)
    corrections = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["corrections"]
    corrections = corrections - corrections.mean(0)
    others = corrections[[i for i in range(20) if i != 4]].norm(dim=1)
    assert (corrections[4] + wrong[0]).norm() < 0.6 * wrong.norm() and corrections[4].norm() > 2 * others.max()


def test_exposures_of_frames_are_found(head, data_dir, tmp_path):
    """Two frames are darker and bluer than the others: their gains say so, and the avatar is as bright as the rest."""
    config = small_config("train.iterations=400", "train.exposure=true")
    capture, motion, frames, images = prepared(head, data_dir, config)
    factor = torch.tensor([0.75, 0.8, 0.9])
    for i in (3, 11):
        images[i, ..., :3] = (images[i, ..., :3] * factor).byte()
    training.train(config, capture, motion, head, frames, images, tmp_path, torch.device("cpu"), log=lambda _: None)
    gains = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["gains"]
    usual = gains[[i for i in range(len(gains)) if i not in (3, 11)]].median(0).values
    for i in (3, 11):
        assert (gains[i] - usual - factor.log()).abs().max() < 0.08
