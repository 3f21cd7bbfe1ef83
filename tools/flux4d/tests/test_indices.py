"""Clips: the paper's slicing, and logs that are not as they should be."""

import json
from itertools import pairwise

import numpy as np
import pytest
from flux4d import indices
from flux4d.indices import PAPER, debug_slicing
from recon4d import InputError


def build(folder, slicing=PAPER, val=(), log=None):
    return indices.build(folder.parent, slicing, val, ("front_camera",), (log if log is not None else []).append)


def test_papers_clips(bare):
    bare("002")
    folder = bare("011")  # one of the paper's test scenes
    found = build(folder, val=None)
    train = [clip for clip in found["clips"] if clip["split"] == "train"]
    test = [clip for clip in found["clips"] if clip["split"] == "test"]
    assert {clip["scene"] for clip in train} == {"002"} and {clip["scene"] for clip in test} == {"011"}
    interpolation = [clip for clip in train if clip["setting"] == "interpolation"]
    assert [clip["frames"][0] for clip in interpolation] == list(range(0, 70, 6))
    for first, second in pairwise(interpolation):
        assert len(set(first["frames"]) & set(second["frames"])) == 5  # of 11
    assert interpolation[0]["input"] == [0, 2, 4, 6, 8, 10] and interpolation[0]["target"] == [1, 3, 5, 7, 9]
    future = [clip for clip in train if clip["setting"] == "future"]
    assert [clip["frames"][0] for clip in future] == [0, 11, 22, 33, 44, 55]
    assert future[0]["target"] == [1, 3, 5, 7, 9, 11, 12, 13, 14, 15]
    assert [clip["frames"][0] for clip in test] == [0, 20, 40, 60] and {len(clip["frames"]) for clip in test} == {16}
    one = test[1]
    assert one["lidar"][0] == "011/lidar/20.pkl.gz" and one["cuboids"][0] == "011/annotations/cuboids/20.pkl.gz"
    view = one["cameras"]["front_camera"]
    assert view["images"][2] == "011/camera/front_camera/22.jpg" and view["size"] == [32, 18]
    assert view["intrinsics"] == {"fx": 30, "fy": 30, "cx": 15.5, "cy": 8.5}
    assert one["lidar_poses"][3]["position"] == {"x": 0, "y": pytest.approx(11.5), "z": 2}


def test_debug_clips(bare):
    folder = bare("001", n=40)
    clips = build(folder, debug_slicing(1.5, 1.0))["clips"]
    assert [clip["frames"][0] for clip in clips] == [0, 10, 20] and len(clips[0]["frames"]) == 16
    assert clips[0]["setting"] == "future" and clips[0]["input"][-1] == 10
    short = build(folder, debug_slicing(0.4, 2.0))["clips"]
    assert [clip["input"] for clip in short] == [[0, 2, 4]] * 2 and short[0]["setting"] == "interpolation"
    with pytest.raises(InputError, match="--clip-len-s"):
        debug_slicing(0.1, 1.0)


def test_timestamps_out_of_order(bare):
    times = np.arange(20) / 10
    times[[4, 9]] = times[[9, 4]]
    clips = build(bare(times=times, n=20))["clips"]
    assert all(np.diff(clip["timestamps"]).min() > 0 for clip in clips)
    assert clips[0]["frames"][:10] == [0, 1, 2, 3, 9, 5, 6, 7, 8, 4]


def test_cameras_with_other_rates(bare):
    (clip,) = build(bare(n=11, camera_rate=30.0))["clips"]
    assert clip["cameras"]["front_camera"]["frames"] == list(range(0, 33, 3))
    # a camera of 5 Hz has an image for every other sweep
    log = []
    found = build(bare("slow", n=16, camera_rate=5.0), log=log)
    assert {clip["scene"] for clip in found["clips"]} == {"001"}
    assert any(line.startswith("slow: ") and "are fewer than a clip's 11" in line for line in log)
    found = build(bare("uneven", n=32, camera_rate=4.0), log=log)
    assert {clip["scene"] for clip in found["clips"]} == {"001"}


def test_gaps_and_jumps_are_left_out(bare):
    log = []
    times = np.arange(40) / 10
    times[25:] += 0.5
    found = build(bare("gap", n=40, times=times), log=log)
    assert all(np.diff(clip["timestamps"]).max() < 0.2 for clip in found["clips"])
    assert any("gap: frames 18 to 28: sweeps, or a camera's images" in line for line in log)
    positions = 0.5 * np.arange(40)
    positions[12:] += 30
    log = []
    found = build(bare("jump", n=40, positions=positions), log=log)
    jumped = [clip for clip in found["clips"] if clip["scene"] == "jump"]
    assert jumped and all(clip["frames"][0] >= 12 or clip["frames"][-1] < 12 for clip in jumped)
    assert any("the pose jumps" in line for line in log)


def test_log_shorter_than_a_clip(bare):
    log = []
    found = build(bare(n=13), log=log)
    assert len(found["clips"]) == 1 and log == ["001: 13 frames are fewer than a clip's 16"]
    log = []
    with pytest.raises(InputError, match="no scene is long enough for a clip"):
        build(bare("002", n=5), val=("002", "001"), log=log)
    # in a test split, clips past the end are said
    log = []
    found = build(bare("003", n=40), val=("003",), log=log)
    assert [clip["frames"][0] for clip in found["clips"] if clip["scene"] == "003"] == [0, 20]
    assert "003: a clip of 16 frames from 40 ends after the log's 40" in log


def test_scene_without_cuboids(bare):
    (clip,) = build(bare(n=11, cuboids=False))["clips"]
    assert clip["cuboids"] is None


def test_broken_scenes_are_named(bare, tmp_path):
    folder = bare(n=11)
    poses = folder / "lidar" / "poses.json"
    whole = poses.read_text()

    def broken(message):
        with pytest.raises(InputError, match=message):
            build(folder)

    poses.write_text(whole[:100])
    broken("poses.json is not readable JSON")
    poses.write_text("[1, 2]")
    broken("poses.json does not hold poses")
    poses.write_text(json.dumps(json.loads(whole)[:-1]))
    broken("11 files, 10 poses in poses.json and 11 times in timestamps.json")
    poses.write_text(whole.replace('"w": 1', '"w": 0'))
    broken("not finite or has no heading")
    poses.unlink()
    broken("poses.json cannot be read")
    poses.write_text(whole)
    intrinsics = folder / "camera" / "front_camera" / "intrinsics.json"
    intrinsics.write_text('{"fx": 1, "fy": "wide", "cx": 0, "cy": 0}')
    broken("numbers fx, fy, cx, cy")
    with pytest.raises(InputError, match="has no camera side; it has front_camera"):
        indices.build(folder.parent, PAPER, (), ("side",), print)
    with pytest.raises(InputError, match="--val-scenes names 9, which is not there; the scenes are 001"):
        build(folder, val=("9",))
    with pytest.raises(InputError, match="holds no scenes"):
        build(tmp_path / "scenes" / "001" / "lidar")
    with pytest.raises(InputError, match="is not a folder"):
        build(tmp_path / "nowhere" / "001")


def test_index_files(bare, tmp_path):
    bare("002", n=11)
    found = build(bare("001", n=11))
    path = tmp_path / "clips.pkl"  # any suffix; it is JSON
    indices.write(path, found)
    assert indices.read(path) == found == json.loads(path.read_text())
    assert {clip["scene"] for clip in indices.restrict(found, None, 1)["clips"]} == {"001"}
    assert {clip["scene"] for clip in indices.restrict(found, ("002",), 1)["clips"]} == {"002"}
    with pytest.raises(InputError, match="--tiny-scenes names 7"):
        indices.restrict(found, ("7",), 1)
    with pytest.raises(InputError, match="--clip-index 2: the index has clips 0 to 1"):
        indices.choose(found, 2)
    for content in (b"\x80\x04K\x01.", b"{}", b"[]", path.read_bytes()[:50]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is not an index of flux4d|is not readable JSON"):
            indices.read(path)
    with pytest.raises(InputError, match="is not a file; write one with flux4d index"):
        indices.read(tmp_path / "none.json")


def test_pictures_of_any_suffix_and_files_of_a_mac(bare):
    folder = bare(n=11)
    for i, path in enumerate(sorted((folder / "camera/front_camera").glob("*.jpg"))):
        path.with_name(f"._{path.name}").write_bytes(b"of a Mac")
        path.rename(path.with_suffix((".jpeg", ".JPG", ".JPEG")[i % 3]))
    (folder / "lidar" / "._00.pkl.gz").write_bytes(b"of a Mac")
    (clip,) = build(folder)["clips"]
    assert clip["cameras"]["front_camera"]["images"][1].endswith("01.JPG")


def test_a_missing_cuboid_is_said_and_leaves_the_others(bare):
    folder, log = bare(n=40), []
    boxes = folder / "annotations/cuboids"
    (boxes / "30.pkl.gz").unlink()
    (boxes / "._30.pkl.gz").write_bytes(b"of a Mac")
    clips = build(folder, debug_slicing(1.0, 1.0), log=log)["clips"]
    labelled = {clip["frames"][0]: clip["cuboids"] is not None for clip in clips}
    assert labelled == {0: True, 10: True, 20: False}
    assert log == ["001: 1 of 40 frames have no cuboids; 1 of 3 clips are without labels"]
    assert clips[1]["cuboids"][3] == "001/annotations/cuboids/13.pkl.gz"


def test_a_lone_test_scene_is_trained_on(bare):
    log = []
    clips = build(bare("001"), val=None, log=log)["clips"]
    assert {clip["split"] for clip in clips} == {"train"} and "the only one here: it is trained on" in log[0]
    log.clear()
    clips = build(bare("011"), val=None, log=log)["clips"]  # beside 001
    assert {clip["split"] for clip in clips} == {"test"} and "there is none to train on" in log[0]
