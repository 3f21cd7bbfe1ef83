"""The package face-alignment itself, with weights that are made here: a test can not download any."""

import sys
import urllib.error
from pathlib import Path

import face_alignment
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from face_alignment.detection.sfd.net_s3fd import s3fd
from face_alignment.detection.sfd.sfd_detector import models_urls as detector_urls
from face_alignment.models import FAN, ResNetDepth
from prep_faces.cli import main
from prep_faces.detectors import detect
from prep_faces.faces import five_points
from prep_faces.fan_faces import load_aligner
from recon4d import InputError
from recon4d.images import write_png

FILES = {name: Path(url).name for name, url in {**detector_urls, **face_alignment.api.models_urls}.items()}
SIZE = 128  # of the picture: the coarsest anchors lie at 64 and 192


def constant_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All zeros, in a file of a few bytes: the values of a tensor that is expanded are stored once."""
    return {key: torch.zeros(()).expand(value.shape) for key, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A cache folder of PyTorch with files of the right architecture.

    The detector answers one box of 512 pixels around its coarsest anchors, the points are those of a random network,
    depth is a thousandth of the point's number.
    """
    folder = tmp_path_factory.mktemp("hub") / "checkpoints"
    folder.mkdir()
    detector = constant_state(s3fd())
    for key, value in detector.items():
        if key.endswith("conf.bias"):
            sure = 4.0 if key.startswith("conv7_2") else -4.0
            detector[key] = torch.tensor([*[-sure] * (len(value) - 1), sure])  # one level has three backgrounds
    torch.save(detector, folder / FILES["s3fd"])
    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), folder / FILES["2DFAN-4"])
    (folder / FILES["3DFAN-4"]).symlink_to(folder / FILES["2DFAN-4"])
    depth = constant_state(ResNetDepth())
    depth["fc.bias"] = torch.arange(68.0) / 1000
    # As in a training checkpoint: names of a parallel module, and a NumPy number.
    state = {f"module.{key}": value for key, value in depth.items()}
    torch.save({"state_dict": state, "best_acc": np.float64(0.5)}, folder / FILES["depth"])
    return folder


def look_in(folder: Path, monkeypatch) -> None:
    """The package looks for its files in `folder`/checkpoints, and finds no network."""

    def no_network(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    for module in ("torch.hub", "face_alignment.utils"):
        monkeypatch.setattr(f"{module}.get_dir", lambda: str(folder))
        monkeypatch.setattr(f"{module}.download_url_to_file", no_network)


@pytest.fixture(autouse=True)
def here(weights, monkeypatch):
    look_in(weights.parent, monkeypatch)
    for name, value in list(vars(face_alignment.utils).items()):
        if hasattr(value, "py_func"):  # compiling what finds the peaks takes ten seconds, running it as Python none
            monkeypatch.setattr(face_alignment.utils, name, value.py_func)
    load_aligner.cache_clear()
    yield
    load_aligner.cache_clear()


@pytest.fixture(scope="module")
def picture(portrait):
    return np.ascontiguousarray(portrait[50 : 50 + SIZE, 90 : 90 + SIZE])


@pytest.mark.parametrize("points", ["ibug", "3d"])
def test_answers_are_those_of_the_package(picture, points):
    tiny = np.zeros((1, 1, 3), np.uint8)
    nothing, faces = detect([tiny, picture], "face-alignment", points=points)
    assert len(nothing.boxes) == 0 and nothing.landmarks.shape == (0, 68, 3 if points == "3d" else 2)
    (box,), (score,) = faces.boxes, faces.scores
    assert (box[2:] - box[:2]).tolist() == [512, 512] and set((box[:2] + 256) % 128) == {64}
    assert score == pytest.approx(1 / (1 + np.exp(-8)))
    kind = face_alignment.LandmarksType.THREE_D if points == "3d" else face_alignment.LandmarksType.TWO_D
    package = face_alignment.FaceAlignment(kind, device="cpu", compile=False)
    (expected,) = package.get_landmarks_from_image(picture, detected_faces=[[*box.tolist(), 1.0]])
    assert len(np.unique(expected[:, :2], axis=0)) > 30  # different points
    assert faces.landmarks[0, :, :2] == pytest.approx(expected[:, :2] + 0.5)  # pixel centres
    assert np.array_equal(faces.points, five_points(faces.landmarks))
    if points == "3d":
        # Depth is in units of a crop of 256 pixels that shows 200 / 195 of the box's width and height.
        scale = 200 * (512 + 512) / 195 / 256
        assert faces.landmarks[0, :, 2] == pytest.approx(np.arange(68) / 1000 * scale, rel=1e-3)
    assert len(detect([picture], "face-alignment", threshold=0.9999, points=points)[0].boxes) == 0


def test_command(picture, tmp_path):
    write_png(tmp_path / "f" / "0.png", picture)
    (tmp_path / "f" / "broken.png").write_bytes(b"no")
    arguments = ["landmarks", str(tmp_path / "f"), "--out", str(tmp_path / "o"), "--device", "cpu", "--points", "3d"]
    done = CliRunner().invoke(main, [*arguments, "--detector", "face-alignment", "--batch", "2"])
    assert done.exit_code == 0, done.output
    points = np.load(tmp_path / "o" / "landmarks" / "0.npy")
    assert points.shape == (68, 3) and points.dtype == np.float32
    assert "broken.png is not a readable image" in (tmp_path / "o" / "landmarks.jsonl").read_text()
    for detector in ("dlib", "mtcnn"):
        done = CliRunner().invoke(main, [*arguments, "--detector", detector, "--force"])
        assert done.exit_code == 2 and "--points 3d" in done.stderr and "face-alignment" in done.stderr
    assert np.load(tmp_path / "o" / "landmarks" / "0.npy").shape == (68, 3)


@pytest.mark.parametrize(("points", "wanted"), [("ibug", ("s3fd", "2DFAN-4")), ("3d", ("s3fd", "3DFAN-4", "depth"))])
def test_without_network_the_message_says_which_file_goes_where(weights, tmp_path, monkeypatch, points, wanted):
    look_in(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="no route to host") as error:
        detect([], "face-alignment", points=points)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    for name in wanted:
        assert FILES[name] in str(error.value)
        (tmp_path / "checkpoints" / FILES[name]).symlink_to((weights / FILES[name]).resolve())
    assert str(tmp_path / "checkpoints") in str(error.value)
    load_aligner("cpu", points)  # these are all it needs


def test_damaged_and_hostile_weights(weights, tmp_path, monkeypatch):
    look_in(tmp_path, monkeypatch)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("s3fd", "3DFAN-4"):
        (folder / FILES[name]).symlink_to((weights / FILES[name]).resolve())
    (folder / FILES["depth"]).write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/harm'\ntR.".encode())
    with pytest.raises(InputError, match=r"cannot load its weights .*; delete .*depth"):
        load_aligner("cpu", "3d")
    assert not (tmp_path / "harm").exists()
    (folder / FILES["2DFAN-4"]).write_bytes((weights / FILES["2DFAN-4"]).read_bytes()[:999])
    with pytest.raises(InputError, match=r"cannot load its weights .*; delete .*2DFAN4"):
        load_aligner("cpu")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(InputError, match=r"install prep-faces\[fan\]"):
        detect([], "face-alignment")
