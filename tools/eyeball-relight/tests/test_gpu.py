"""Training on a GPU: a real one where there is one, and a pretended one that says where tensors of both are mixed."""

import contextlib

import pytest
import torch
from eyeball_relight import captures, checkpoint, config, training
from pretend_gpu import pretend_gpu

SHORT = (
    *("train.iterations=7", "train.mesh_render_iter=5", "train.milestones=[4]", "train.checkpoint_every=3"),
    *("train.refine_pose=true", "train.refine_focal=true", "train.refine_after=1", "light.exposure=true"),
    *(
        "eyes.still=2",
        "losses.lpips=0.1",
        "losses.occlusion=0.1",
        "losses.room=0.1",
        "train.grid=16",
        "train.mesh_resolution=32",
    ),
)


@pytest.fixture(scope="module")
def on_cpu(data, tiny, tmp_path_factory):
    """Settings, capture, and the loss and field of a training on the CPU."""
    settings = config.load(data / "config.yaml", "cpu-quick", [*tiny, *SHORT])
    loaded, out = captures.read(data, print), tmp_path_factory.mktemp("cpu")
    result = training.train(settings, loaded, out, print)
    return settings, loaded, result.loss, checkpoint.read(out / checkpoint.CHECKPOINT)["field"]


@contextlib.contextmanager
def real_gpu():
    yield torch.device("cuda")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.filterwarnings("ignore:for .* non-meta parameter")  # the pretended GPU's name
@pytest.mark.parametrize("gpu", [pretend_gpu, pytest.param(real_gpu, marks=[pytest.mark.cuda, needs_gpu])])
def test_it_learns_as_on_the_cpu_and_resumes(on_cpu, tmp_path, monkeypatch, gpu):
    settings, loaded, loss, expected = on_cpu
    volume_terms = training.volume_terms

    def stop_at_four(*arguments):
        if arguments[4] == 4:
            raise KeyboardInterrupt
        return volume_terms(*arguments)

    with gpu() as device:
        monkeypatch.setattr(training, "volume_terms", stop_at_four)
        with pytest.raises(KeyboardInterrupt):
            training.train(settings, loaded, tmp_path, print, device=device)
        monkeypatch.undo()
        result = training.train(settings, loaded, tmp_path, print, resume=True, device=device)
    found = checkpoint.read(tmp_path / checkpoint.CHECKPOINT)["field"]
    assert result.steps == 7 and result.loss == pytest.approx(loss, rel=0.02)
    for name, value in expected.items():
        # Adam's steps do not know how small a gradient is, so a few numbers go their own way
        assert (found[name] - value).abs().double().mean() < 1e-3, name
