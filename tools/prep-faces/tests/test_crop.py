"""Crops: faces at the same place in each, matrices that are true, sequences that are steady."""

import json

import numpy as np
import pytest
from PIL import Image
from prep_faces.crop import CropConfig, crop_matrix, place, read_config, steady_places, write_crops
from prep_faces.dlib_faces import find_faces
from recon4d import InputError
from recon4d.images import write_png


@pytest.fixture
def dataset(portrait, tmp_path):
    folder = tmp_path / "data ü"
    for i in range(4):
        write_png(folder / "original_image" / "seq 1" / f"{i}.png", np.roll(portrait, 6 * i, axis=1))
    write_png(folder / "original_image" / "seq 1" / "1.png", np.full_like(portrait, 90))  # no face in between
    write_png(folder / "original_image" / "wall" / "0.png", np.full((50, 50, 3), 90, np.uint8))
    (folder / "original_image" / "seq 1" / "9.png").write_bytes(b"broken")
    config = tmp_path / "exp.yaml"
    config.write_text("dataset: data ü\nprep_faces: {size: 96, smooth: 0}\nfeatures: {model: other}\n")
    return config


def test_command(run, dataset, tmp_path):
    done = run("crop", "--config", dataset, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 4 and "2 of 6 images failed" in done.stderr
    out = tmp_path / "data ü" / "lr_image"
    records = {r["file"]: r for r in map(json.loads, (out / "crops.jsonl").read_text().splitlines())}
    assert "no face found" in records["wall/0.png"]["error"]
    assert "not a readable image" in records["seq 1/9.png"]["error"]
    assert [records[f"seq 1/{i}.png"]["found"] for i in range(4)] == [True, False, True, True]
    # The picture moves by 6 pixels per frame, and the crop with it; the frame without a face lies between.
    corners = np.array([np.array(records[f"seq 1/{i}.png"]["to_image"])[:, 2] for i in range(4)])
    assert np.abs(np.diff(corners[:, 0]) - 6).max() < 1.5 and np.abs(np.diff(corners[:, 1])).max() < 1.5
    for i in (0, 2):
        with Image.open(out / "seq 1" / f"{i}.png") as image:
            picture = np.array(image)
        assert picture.shape == (96, 96, 3)
        points = find_faces(np.repeat(np.repeat(picture, 3, 0), 3, 1)).landmarks[0] / 3
        eyes = np.array([points[36:42].mean(0), points[42:48].mean(0)])
        assert abs(eyes[0, 1] - eyes[1, 1]) < 2.5  # level
        assert abs(eyes[:, 0].mean() - 48) < 6
        # The matrix leads from the points in the image to those in the crop.
        with Image.open(dataset.parent / "data ü" / "original_image" / "seq 1" / f"{i}.png") as image:
            original = find_faces(np.array(image)).landmarks[0]
        matrix = np.array(records[f"seq 1/{i}.png"]["to_crop"])
        assert np.abs(original @ matrix[:, :2].T + matrix[:, 2] - points).mean() < 1.0
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    (out / "seq 1" / "2.png").unlink()
    folder, config = read_config(dataset)
    assert write_crops(folder, config)["written"] == 4
    assert before == {path: path.read_bytes() for path in out.rglob("*.png")}
    assert run("crop", "--config", dataset, "--strict").returncode == 2


def test_matrix_and_place_by_hand():
    matrix = crop_matrix(30, 40, np.log(20), np.pi / 2, 100)
    assert matrix[:, :2] @ [30, 40] + matrix[:, 2] == pytest.approx([50, 50])
    # Turned a quarter: what lies below the centre in the image lies to its right in the crop.
    assert matrix[:, :2] @ [30, 42] + matrix[:, 2] == pytest.approx([60, 50])
    points = np.array([[10.0, 20], [30, 20], [20, 30], [12, 41], [28, 41]])
    x, y, log_side, turn = place(points, np.zeros(4), CropConfig(margin=0))
    assert (x, turn) == (20, pytest.approx(0))
    at = crop_matrix(x, y, log_side, turn, 100)
    assert (at[:, :2] @ [20, 20] + at[:, 2])[1] == pytest.approx(36)
    assert (at[:, :2] @ [20, 41] + at[:, 2])[1] == pytest.approx(74)
    box = place(points, np.array([0.0, 0, 40, 60]), CropConfig(mode="box", margin=0.5))
    assert box == pytest.approx([20, 30, np.log(120), 0])


def test_smoothing_lowers_jitter_and_fills_gaps():
    rng = np.random.default_rng(0)
    path = np.column_stack([np.linspace(0, 20, 80), np.zeros(80), np.zeros(80), np.full(80, 3.1)])
    noisy = path + rng.normal(0, 1, path.shape) * [1, 1, 0.01, 0.05]
    noisy[:, 3] = (noisy[:, 3] + np.pi) % (2 * np.pi) - np.pi  # angles that jump by a full turn
    noisy[30:33] = np.nan
    steady = steady_places(noisy, 2.0)
    jitter = np.abs(np.diff(noisy[:, 0], 2))
    assert np.nanmean(jitter) > 5 * np.abs(np.diff(steady[:, 0], 2)).mean()
    assert np.abs(steady[5:-5, 0] - path[5:-5, 0]).max() < 1.5
    assert np.abs(np.diff(steady[:, 3])).max() < 0.2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("dataset: d\nprep_faces: {sizes: 3}", "prep_faces.sizes: Extra inputs"),
        ("dataset: d\nprep_faces: {size: tall}", "prep_faces.size: Input should be a valid integer"),
        ("prep_faces: {size: 3}", "has no key dataset"),
        ("dataset: nowhere", "is not a folder"),
        ("dataset: [", "is not readable YAML"),
    ],
)
def test_bad_config(tmp_path, text, what):
    (tmp_path / "d" / "original_image").mkdir(parents=True)
    (tmp_path / "exp.yaml").write_text(text)
    with pytest.raises(InputError, match=what):
        read_config(tmp_path / "exp.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")
