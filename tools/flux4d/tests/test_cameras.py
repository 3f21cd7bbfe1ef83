"""Several cameras in a clip: what each sees is lifted, drawn and measured."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from flux4d import clips, indices, samples, synth
from flux4d.cli import main
from flux4d.clips import in_view
from flux4d.config import change_config
from recon4d import InputError

BOTH = "front_camera,left_camera"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene of six frames with two cameras that look past each other, and its index."""
    place = tmp_path_factory.mktemp("cameras")
    synth.write_scene(place / "scenes" / "001", 1, 6, 96, 240, 1, cameras=tuple(BOTH.split(",")))
    slicing = indices.debug_slicing(0.5, 0.5)
    index = indices.build(place / "scenes", slicing, None, tuple(BOTH.split(",")), lambda text: None)
    indices.write(place / "clips.json", index)
    return place


def test_a_clip_of_two(folder, small):
    index = indices.read(folder / "clips.json")
    root = indices.root_of(index)
    entry = index["clips"][0]
    both = clips.load(entry, root, BOTH)
    front, left = (clips.load(entry, root, name) for name in BOTH.split(","))
    count = len(entry["frames"])
    assert torch.equal(both.images, torch.cat([front.images, left.images]))
    torch.testing.assert_close(both.cameras.steps, torch.cat([front.cameras.steps, left.cameras.steps]))
    for picture, (alone, frame) in {1: (front, 1), count + 2: (left, 2)}.items():
        torch.testing.assert_close(both.camera(picture).world_to_camera, alone.camera(frame).world_to_camera)
        assert all(torch.equal(one, other) for one, other in zip(both.depths[picture], alone.depths[frame]))
        assert both.frame_of(picture) == frame and both.name_of_camera(picture) == alone.names[0]
    assert both.input == [*front.input, *(count + frame for frame in left.input)]
    # the left camera looks to the left, a right angle and a bit from the other
    ahead, aside = (one.camera(0).camera_to_world[:3, 2] for one in (front, left))
    assert float(ahead @ aside) == pytest.approx(np.cos(np.radians(100)), abs=1e-3) and aside[0] < -0.9
    settings = change_config(small.model_dump(), "test", ["lift.max_gaussians=100000"], {"data.camera": BOTH})
    sample = samples.load_sample(entry, root, settings, torch.device("cpu"))
    solid = sample.given.gaussians.means[~sample.given.gaussians.sky]
    seen = [in_view(solid, one.camera(0))[2].float().mean() for one in (front, left)]
    assert min(seen) > 0.2 and sum(seen) < 1.1
    settings = change_config(settings.model_dump(), "test", ["data.camera=back_camera"])
    with pytest.raises(InputError, match="back_camera is not in the index"):
        samples.load_sample(entry, root, settings, torch.device("cpu"))


def test_trained_measured_and_drawn(folder):
    def call(*arguments):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    common = ["--index-path", folder / "clips.json", "--camera", BOTH]
    small = ["lift.max_gaussians=2000", "lift.sky_points=4000", "model.channels=[8]", "model.hidden=8"]
    words = [word for setting in (*small, "model.refinements=1", "train.frames=2") for word in ("--set", setting)]
    call("overfit", *common, "--iters", 4, "--output-dir", folder / "run", *words, "--device", "cpu")
    out = ["--ckpt", folder / "run" / "ckpt_last.pt", "--clip-index", 0, "--device", "cpu"]
    found = call("eval", *common[:2], *out, "--out-dir", folder / "eval", "--save-renders")
    # two cameras, two moments between the inputs and one after them
    assert (found["interpolation"]["frames"], found["future"]["frames"]) == (4, 2)
    renders = folder / "eval" / "renders" / "001_00"
    assert sorted(path.relative_to(renders).as_posix() for path in renders.rglob("*.png")) == [
        f"{name}/{frame:02d}.png" for name in BOTH.split(",") for frame in (1, 3, 5)
    ]
    alone = call("eval", *common[:2], "--camera", "left_camera", *out, "--out-dir", folder / "left")
    assert alone["interpolation"]["frames"] == 2
    scene = call("reconstruct", *common[:2], *out, "--out-dir", folder / "scene", "--fps", 5, "--slow", 1)
    assert scene["frames"] > 1 and scene["gaussians"] > 1000
