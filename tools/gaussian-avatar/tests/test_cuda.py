"""The same avatar on a GPU: deformation and training."""

import numpy as np
import pytest
import torch
from gaussian_avatar import avatars, captures, model_file, motions, training
from gaussian_avatar.backgrounds import composite
from gaussian_avatar.config import load_config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = ["model.tex_size=40", "train.batch_size=5", "train.iterations=400", "train.blend_start=100"]


def test_renders_agree_after_training_on_the_gpu(head, data_dir, tmp_path):
    config = load_config("cpu-quick", OPTIONS)
    capture = captures.open_capture(data_dir / "one", None, lambda _: None)
    motion = motions.from_track(capture.track, head)
    frames = np.arange(20)
    cuda = torch.device("cuda")
    images = captures.preload(capture, frames, pin=True)
    training.train(config, capture, motion, head, frames, images, tmp_path, cuda, log=lambda _: None)
    avatar = model_file.read_ply(tmp_path / "model.ply", head, motion.inputs.shape[1])
    camera = motion.camera
    on_gpu = camera.to("cuda")
    pictures = []
    for model, shape, look, device in (
        (avatar, head, camera, "cpu"),
        (avatar, head.to("cuda"), on_gpu, "cuda"),
    ):
        with torch.no_grad():
            splats, _ = avatars.deform(
                model.to(device),
                shape,
                motion.vertices[20:].to(device),
                motion.inputs[20:].to(device),
                look.world_to_camera,
                one_sided=True,
            )
            pictures.append(avatars.rasterize(splats, look)[0].cpu())
    assert (pictures[0] - pictures[1]).abs().mean() < 1e-3
    truth, mask = composite(captures.preload(capture, np.arange(20, 24)), torch.zeros(4, 3))
    error = ((pictures[1] - truth).square() * mask).sum() / (3 * mask.sum())
    assert -10 * float(error.log10()) > 24
