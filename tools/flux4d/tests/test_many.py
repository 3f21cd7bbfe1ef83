"""Import and index over many scenes: processes and Ray give what one process gives."""

import sys

import pytest
from flux4d import imports, indices, many
from posts import write_folder
from recon4d import InputError


@pytest.fixture(scope="module", autouse=True)
def end_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else beside other tests on few cores they would wait for minutes
        yield
    import ray  # not before the engine has set up its environment

    ray.shutdown()


def test_index_of_many_scenes(bare, tmp_path, monkeypatch):
    for number in range(1, 4):
        bare(f"{number:03d}", n=16)
    root = bare("004", n=5).parent  # too short
    said: dict[tuple, list] = {}

    def made(workers, engine):
        lines = said.setdefault((workers, engine), [])
        return indices.build(root, indices.PAPER, ("002",), ("front_camera",), lines.append, workers, engine)

    monkeypatch.setattr(indices, "FEW", 1)
    one = made(1, "local")
    assert len(one["clips"]) == 2 * 2 + 1 and made(1, "ray") == one
    assert len({tuple(lines) for lines in said.values()}) == 1 and any("004" in line for line in said[1, "local"])
    (root / "003" / "lidar" / "poses.json").write_text("{}")
    with pytest.raises(InputError, match="003"):
        made(1, "local")


def test_import_of_many_logs(tmp_path):
    """Three logs of plain folders, one of them broken."""
    for name in ("a", "b", "c"):
        write_folder(tmp_path / "logs" / name)
    (tmp_path / "logs" / "c" / "calibration.json").write_text("{}")
    found = {}
    for key, options in {"one": {}, "ray": {"workers": 1, "engine": "ray"}}.items():
        found[key] = imports.import_log("folder", tmp_path / "logs", tmp_path / key, log=lambda text: None, **options)
    names = [scene["scene"].rpartition("/")[2] for scene in found["one"]["scenes"]]
    assert names == ["a", "b"] and list(found["one"]["failed"]) == ["c"]
    assert found["ray"]["failed"] == found["one"]["failed"]
    for name in ("a", "b"):
        files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one" / name).rglob("*.*") if p.is_file())
        assert all((tmp_path / "ray" / f).read_bytes() == (tmp_path / "one" / f).read_bytes() for f in files)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"install recon4d\[ray\]"):
        list(many.over(str, [1, 2, 3], 2, "ray"))
