"""Datasets of every source become the same numbered thumbnails and landmarks."""

import io
import json
import sys

import datasets
import forks
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from prep_faces.ffhq import read_hub, write_ffhq
from recon4d import InputError
from recon4d.images import read, write_png


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(portrait):
    return [portrait, np.full((40, 40, 3), 99, np.uint8), np.ascontiguousarray(portrait[:, ::-1])]


def test_command_on_a_folder(run, pictures, tmp_path):
    for i, picture in enumerate(pictures):
        write_png(tmp_path / "in" / f"bild {i + 9}.png", picture)
    (tmp_path / "in" / "bild 8.png").write_bytes(b"broken")
    arguments = ("ffhq", tmp_path / "in", "--out", tmp_path / "o", "--size", 150)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert {key: json.loads(done.stdout)[key] for key in ("images", "unreadable", "written", "failed")} == {
        "images": 4, "unreadable": 1, "written": 2, "failed": 2,
    }  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "o" / "ffhq.jsonl").read_text().splitlines()]
    assert [record["source"] for record in records] == [f"bild {i}.png" for i in (8, 9, 10, 11)]
    assert "not a readable image" in records[0]["error"]
    assert read(tmp_path / "o" / "thumbnails" / "thumb_00001.png").shape == (150, 150, 3)
    names = sorted(path.name for path in (tmp_path / "o" / "landmarks").iterdir())
    assert names == ["thumb_00001.npy", "thumb_00003.npy"]
    # The last picture is the first mirrored.
    first, last = (np.load(tmp_path / "o" / "landmarks" / name) for name in names)
    assert np.abs(first[30] - ([150, 0] + last[30] * [-1, 1])).max() < 2
    # Killed and started again.
    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.*") if path.is_file()}
    (tmp_path / "o" / "thumbnails" / "thumb_00003.png").unlink()
    (tmp_path / "o" / "landmarks" / "thumb_00003.npy").unlink()
    write_ffhq(str(tmp_path / "in"), tmp_path / "o", size=150)
    assert before == {path: path.read_bytes() for path in (tmp_path / "o").rglob("*.*") if path.is_file()}
    with pytest.raises(InputError, match="--force"):
        write_ffhq(str(tmp_path / "in"), tmp_path / "o", size=99)


def test_parquet(pictures, tmp_path):
    rows = [{"bytes": encoded(picture), "path": None} for picture in pictures]
    (tmp_path / "in").mkdir()
    for i, part in enumerate((rows[:2], rows[2:])):
        table = pyarrow.table({"label": [0] * len(part), "image": part})
        pyarrow.parquet.write_table(table, tmp_path / "in" / f"{i}.parquet")
    result = write_ffhq(str(tmp_path / "in"), tmp_path / "o", limit=3)
    assert (result["images"], result["written"], result["failed"]) == (3, 2, 1)
    for i, picture in enumerate(pictures):
        assert np.array_equal(read(tmp_path / "o" / "thumbnails" / f"thumb_{i:05d}.png"), picture)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"bad.parquet is not a readable parquet file"):
        write_ffhq(str(tmp_path / "bad.parquet"), tmp_path / "x")
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "bare.parquet")
    with pytest.raises(InputError, match="has no column image"):
        write_ffhq(str(tmp_path / "bare.parquet"), tmp_path / "x")


@pytest.mark.parametrize("kind", ["parquet", "files"])
def test_the_package_datasets_on_a_dataset_of_this_disk(pictures, tmp_path, kind):
    """The same calls that read one from the network."""
    dataset = tmp_path / "some" / "faces"
    if kind == "parquet":
        (dataset / "data").mkdir(parents=True)
        rows = [{"bytes": encoded(picture), "path": None} for picture in pictures]
        table = datasets.Dataset.from_dict({"label": [0, 1, 2], "image": rows})
        table = table.cast_column("image", datasets.Image())
        table.to_parquet(str(dataset / "data" / "test-00000-of-00001.parquet"))
    else:
        for i, picture in enumerate(pictures):
            write_png(dataset / "test" / f"{i}.png", picture)
    items = list(read_hub(str(dataset), "test"))
    assert len(items) == 3 and items[2][0] == f"{dataset}[2]"
    for (name, data), picture in zip(items, pictures):
        assert np.array_equal(read(name, data=data), picture)
    with pytest.raises(InputError, match="check name, split and network"):
        next(read_hub(str(dataset), "no such split"))


def test_a_dataset_without_images(tmp_path):
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no column of images"):
        next(read_hub(str(tmp_path), "train"))


def test_without_network_or_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at an import
    done = forks.anew("prep-faces", "ffhq", "some/faces", "--out", tmp_path / "x")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "some/faces cannot be read" in done.stderr and "or give local files" in done.stderr
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"install prep-faces\[hub\]"):
        write_ffhq("some/faces", tmp_path / "x")
    with pytest.raises(InputError, match="does not exist"):
        write_ffhq("./nowhere", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_one_image_from_the_hub_is_written(pictures, tmp_path, monkeypatch):
    dataset = tmp_path / "faces"
    for i, picture in enumerate(pictures):
        write_png(dataset / "train" / f"{i}.png", picture)
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: load(str(dataset), **options))
    result = write_ffhq("some/faces", tmp_path / "o", limit=1)
    assert (result["images"], result["written"]) == (1, 1)
    assert np.array_equal(read(tmp_path / "o" / "thumbnails" / "thumb_00000.png"), pictures[0])
