"""Training on a GPU: a real one where there is one, and a pretended one that says where tensors of both are mixed."""

import contextlib
from functools import partial

import pytest
import torch
from eyeball_relight import captures, checkpoint, config, marching, shading, training
from eyeball_relight.batches import gather
from eyeball_relight.field import new_field
from eyeball_relight.rays import draw, pool_of
from eyeball_relight.replay import record, replay
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
        "train.shading=1",
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


EACH = pytest.mark.parametrize("gpu", [pretend_gpu, pytest.param(real_gpu, marks=[pytest.mark.cuda, needs_gpu])])


@pytest.mark.filterwarnings("ignore:for .* non-meta parameter")  # the pretended GPU's name
@EACH
def test_it_learns_as_on_the_cpu_and_resumes(on_cpu, tmp_path, monkeypatch, gpu):
    settings, loaded, loss, expected = on_cpu
    gather = training.gather

    def stop_at_four(*arguments):
        if arguments[4] == 4:
            raise KeyboardInterrupt
        return gather(*arguments)

    with gpu() as device:
        monkeypatch.setattr(training, "gather", stop_at_four)
        with pytest.raises(KeyboardInterrupt):
            training.train(settings, loaded, tmp_path, print, device=device)
        monkeypatch.undo()
        result = training.train(settings, loaded, tmp_path, print, resume=True, device=device)
    found = checkpoint.read(tmp_path / checkpoint.CHECKPOINT)["field"]
    assert result.steps == 7 and result.loss == pytest.approx(loss, rel=0.02)
    for name, value in expected.items():
        # Adam's steps do not know how small a gradient is, so a few numbers go their own way
        assert (found[name] - value).abs().double().mean() < 1e-3, name


@pytest.mark.filterwarnings("ignore:for .* non-meta parameter")
@EACH
def test_a_surface_is_bent_as_on_the_cpu(on_cpu, monkeypatch, gpu):
    settings, loaded, _, _ = on_cpu
    monkeypatch.setattr(shading, "STEPS", 5)
    random = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(200, 3, generator=random), dim=1)
    told = shading.Told(0.4 * normal, normal.roll(1, 1), torch.rand(200, generator=random) > 0.5)
    expected = new_field(settings, len(loaded))
    shading.bend(expected, expected.active(0), told, 0)
    with gpu() as device:
        field = new_field(settings, len(loaded)).to(device)
        shading.bend(field, field.active(0), told, 0)
        found = {name: value.cpu() for name, value in field.state_dict().items()}
    for name, value in expected.state_dict().items():
        assert (found[name] - value).abs().double().mean() < 1e-4, name


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("poses", [False, True])
def test_a_replayed_step_is_the_step(on_cpu, poses):
    settings, loaded, _, _ = on_cpu
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"refine_pose": poses})})
    field, device = new_field(settings, len(loaded)), torch.device("cuda")
    with torch.no_grad():
        field.eye_centres[:] = torch.tensor([[0.2, 0.2, 0.3], [-0.2, 0.2, 0.3]])
        field.exposure.normal_(0, 0.1)
    grid, pool = torch.zeros((settings.train.grid + 1,) * 3), pool_of(loaded)
    marching.update_grid(grid, field, field.active(0), 0)
    batches = []
    for step in range(3):
        generator = training.generator_of(0, step)
        batches.append(gather(field, loaded, grid, draw(pool, 300, generator), step, generator)[0])
    field, camera, intensity = field.to(device), loaded.camera.to(device), torch.ones(3, device=device)
    terms_of = partial(training.volume_terms, field, camera, active=field.active(0), intensity=intensity)
    parameters = dict(field.named_parameters())
    recording = record(terms_of, batches[0].to(device), list(parameters.values()), 4)
    for batch in batches:
        replay(recording, batch)
        found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        loss = torch.stack(list(terms_of(batch.to(device)).values())).sum()
        used = [name for name, p in parameters.items() if p.grad is not None]
        wanted = torch.autograd.grad(loss, [parameters[name] for name in used])
        torch.testing.assert_close(recording.loss, loss.detach(), rtol=1e-4, atol=0)
        for name, grad in zip(used, wanted):
            assert (found[name] - grad).norm() <= 1e-3 * grad.norm(), name
