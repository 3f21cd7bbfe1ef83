"""The READMEs do what they say: the demo runs on a small capture, links lead somewhere, examples run."""

import json
import re
import shutil

import av
import cv2
import numpy as np
import pytest
from demos import PATH, ROOT, run_demo

DEMO = ROOT / "demo" / "portrait_to_avatar.sh"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "portrait é"
    train = "--set train.iterations=350 --set model.tex_size=64"
    result = run_demo(DEMO, out, SYNTH_OPTIONS="--frames 16 --size 144", TRAIN_OPTIONS=train, TRACK_OPTIONS="")
    assert result.returncode == 0, result.stderr
    return out, result


def test_demo_summary_and_table(demo):
    out, result = demo
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"seconds", "track", "metrics", "gaussians", "images_per_second"}
    steps = ["synth", "frames", "landmarks", "track", "matte", "train", "metrics", "render"]
    assert list(summary["seconds"]) == steps and all(s > 0 for s in summary["seconds"].values())
    assert set(summary["track"]) == {"mean_px", "p95_px", "mean_iod"} and 0 < summary["track"]["mean_iod"] < 6
    assert set(summary["metrics"]) == {"psnr", "ssim", "lpips"}
    assert summary["metrics"]["psnr"] > 22  # a short training; a grey head scores about 15
    assert summary["gaussians"] > 1000 and summary["images_per_second"] > 0
    assert "(missing)" not in result.stdout and "held-out PSNR" in result.stdout
    assert all(f"+ {tool}" in result.stderr for tool in ("prep-faces", "flame-encoder", "gaussian-avatar"))


def test_demo_pictures(demo):
    out, _ = demo
    avatar = out / "avatar" / "head" / "demo"
    sheet = cv2.imread(str(avatar / "contact.png"))
    truth, render, _ = np.array_split(sheet, 3)
    assert sheet.shape[0] % 3 == 0 and np.abs(truth.astype(float) - render).mean() < 12
    with av.open(str(avatar / "render.mp4")) as video:
        frames = [f.to_ndarray(format="rgb24").astype(float) for f in video.decode(video=0)]
    assert len(frames) > 40  # the clip, then the turn
    assert all(f.max() > 60 for f in frames)  # the head stays in the picture
    images = sorted((out / "data" / "head" / "images").glob("*.png"))
    frames = sorted((out / "data" / "head" / "checkpoint").glob("*.frame"))
    assert [p.stem for p in images] == [p.stem for p in frames] and len(images) == 16


def test_demo_refuses_wrong_input(tmp_path, demo):
    out, _ = demo
    for arguments, place, message in (
        ((tmp_path / "none.mp4",), tmp_path / "a", "is not a file"),
        ((tmp_path,), tmp_path / "b", "is not a file"),
        ((DEMO, DEMO), tmp_path / "c", "one video"),
        ((), out, "exists; remove it"),
        ((DEMO,), tmp_path / "d", "error: "),  # a file that is no video
    ):
        result = run_demo(DEMO, place, *arguments)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_a_clip_without_a_face(tmp_path):
    with av.open(str(tmp_path / "wall.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for i in range(4):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((96, 96, 3), 90 + i, np.uint8), format="rgb24"))
            )
        container.mux(stream.encode())
    result = run_demo(DEMO, tmp_path / "out", tmp_path / "wall.mp4")
    assert result.returncode == 2 and "error: " in result.stderr and "Traceback" not in result.stderr
    assert "face" in result.stderr.strip().splitlines()[-1]


def test_readme_commands_are_what_ci_and_the_demo_run():
    readme = (ROOT / "README.md").read_text()
    assert "pip install uv && uv run --all-packages bash demo/portrait_to_avatar.sh" in readme
    assert "uv run --all-packages pytest" in readme
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nuv run --all-packages pytest")
    demo = DEMO.read_text()
    for command in re.findall(r"^((?:prep-faces|flame-encoder|gaussian-avatar) \S+)", readme, re.M):
        assert command in demo
        assert shutil.which(command.split()[0], path=PATH)


def test_links_lead_somewhere():
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("tools/*/README.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_library_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "shared" / "README.md").read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["rast"].mask.float().mean() > 0.1 and names["alphas"].max() > 0.9


def test_tools_do_not_import_each_other():
    packages = {p.name.replace("-", "_") for p in (ROOT / "tools").iterdir()}
    for tool in (ROOT / "tools").iterdir():
        for path in tool.glob("src/**/*.py"):
            found = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.M))
            assert not found & (packages - {tool.name.replace("-", "_")}), path
