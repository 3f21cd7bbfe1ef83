"""The layout on disk: poses through instant-ngp's permutation, masks, and what is wrong with captures."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from eyeball_relight import assets, brdf, captures, synth, transforms
from recon4d import InputError
from recon4d.files import read_npz


@pytest.fixture
def copy(data, tmp_path):
    """A capture that a test may break."""
    shutil.copytree(data, tmp_path / "copy", ignore=shutil.ignore_patterns("truth"))
    return tmp_path / "copy"


def nerf_matrix_to_ngp(pose):
    """torch-ngp's function of this name, with scale 1 and no offset, as CoRA's reader has it."""
    rows = [[pose[r, 0], -pose[r, 1], -pose[r, 2], pose[r, 3]] for r in (1, 2, 0)]
    return np.array([*rows, [0, 0, 0, 1]])


def test_poses_go_through_the_permutation(data):
    stored = json.loads((data / "transforms.json").read_text())
    _, camera = captures.read_poses(data)
    for frame, pose in zip(stored["frames"], camera.world_to_camera):
        expected = nerf_matrix_to_ngp(np.array(frame["transform_matrix"]))
        np.testing.assert_allclose(np.linalg.inv(pose.numpy()), expected, atol=1e-5)


def test_written_poses_are_read_back(tmp_path):
    camera = synth.orbit(12, 100, 0)
    captures.write_poses(tmp_path, [f"{i}.png" for i in range(12)], camera)
    names, again = captures.read_poses(tmp_path)
    assert names[3] == "3" and (again.width, again.height) == (100, 100)
    torch.testing.assert_close(again.K, camera.K)
    torch.testing.assert_close(again.world_to_camera, camera.world_to_camera, atol=1e-5, rtol=0)


def test_a_frame_is_named_by_one_rule():
    """Only a picture's suffix is left out: NeRF's own files have none, and names may hold dots."""
    files = ("image/0001.png", "./train/r_0", "a/shot.01.JPG", "shot.01", "v1.2/b.jpeg")
    assert [transforms.stem(file) for file in files] == ["0001", "r_0", "shot.01", "shot.01", "b"]


def test_aligned_poses_are_taken_as_they_are(data, copy):
    stored = json.loads((copy / "transforms.json").read_text())
    for frame in stored["frames"]:
        frame["transform_matrix"] = nerf_matrix_to_ngp(np.array(frame["transform_matrix"])).tolist()
    (copy / "transforms_aligned.json").write_text(json.dumps(stored))
    (copy / "transforms.json").unlink()
    a, b = captures.read_poses(data)[1], captures.read_poses(copy)[1]
    torch.testing.assert_close(a.world_to_camera, b.world_to_camera)


def test_what_a_capture_holds(data):
    said = []
    loaded = captures.read(data, said.append)
    assert len(loaded) == 11 and loaded.image.shape == (11, 64, 64, 3) and not said
    assert loaded.held_out == [5] and loaded.trained == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert captures.held_out(40) == [5, 15, 25, 35] and captures.held_out(2) == [1]
    assert loaded == loaded and loaded != replace(loaded, specular=None) and {loaded: 1}[loaded] == 1
    share = (loaded.mask > 127).float().mean()
    assert 0.15 < share < 0.7 and (loaded.left > 127).any() and (loaded.right > 127).any()
    inside = loaded.mask > 127
    for part in (loaded.hair, loaded.left, loaded.right):
        assert (inside | (part < 128)).float().mean() > 0.999


def test_pictures_are_what_the_truth_explains(data, head):
    """A picture is the flash on the true albedo and normals, but for gloss and the dim room."""
    loaded = captures.read(data, print)
    truth = json.loads((data / "truth" / "truth.json").read_text())
    arrays = read_npz(data / "truth" / "views" / "0005.npz")
    asset, eyes = synth.head_asset(head, 3)
    view = loaded.view(5)
    pixels = assets.visible(asset, view)
    assert eyes == truth["eyes"]
    np.testing.assert_allclose(pixels.image(pixels.normal).numpy(), arrays["normal"], atol=2e-3)
    towards = view.center - pixels.position
    cosine = (torch.nn.functional.normalize(towards, dim=1) * pixels.normal).sum(1)
    lambert = pixels.diffuse[:, 1] * cosine * truth["intensity"] / np.pi / towards.square().sum(1)
    seen = brdf.to_linear(loaded.image[5].view(-1, 3)[pixels.index, 1].float() / 255)
    plain = (cosine > 0.6) & (seen < 0.95)
    ratio = (seen / lambert)[plain]
    assert 0.95 < ratio.median() < 1.4 and np.corrcoef(seen[plain], lambert[plain])[0, 1] > 0.95


def test_true_eyeballs_are_spheres(data, head):
    truth = json.loads((data / "truth" / "truth.json").read_text())["eyes"]
    asset, _ = synth.head_asset(head, 3)
    for part in ("left", "right"):
        away = asset[part].vertices - torch.tensor(truth[f"{part}_centre"])
        torch.testing.assert_close(away.norm(dim=1), torch.full((len(away),), truth["radius"]))
        torch.testing.assert_close(away / truth["radius"], asset[part].normals, atol=1e-4, rtol=0)
    assert truth["left_centre"][0] > truth["right_centre"][0]  # x is towards the person's left


def test_missing_optional_folders_are_zeros_and_said(copy):
    shutil.rmtree(copy / "hair_mask")
    shutil.rmtree(copy / "leye_mask")
    said = []
    loaded = captures.read(copy, said.append)
    assert loaded.hair.max() == 0 and loaded.left.max() == 0 and loaded.specular is None
    assert len(said) == 1 and "hair_mask, leye_mask: taken as zeros" in said[0]


def overlap(folder):
    shutil.rmtree(folder / "reye_mask")
    shutil.copytree(folder / "leye_mask", folder / "reye_mask")


def edited(change):
    def run(folder):
        data = json.loads((folder / "transforms.json").read_text())
        change(data)
        (folder / "transforms.json").write_text(json.dumps(data))

    return run


def resize(folder):
    cv2.imwrite(str(folder / "mask" / "0002.png"), np.zeros((10, 12), np.uint8))


def truncate(folder):
    path = folder / "image" / "0003.png"
    path.write_bytes(path.read_bytes()[:20])


def blacken(folder):
    for path in (folder / "mask").iterdir():
        cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (overlap, "leye_mask and reye_mask of .* overlap in"),
        (resize, r"0002.png has 12x10 pixels and transforms.json says 64x64"),
        (truncate, "0003.png is not a readable"),
        (blacken, "mask is black everywhere"),
        (lambda f: shutil.rmtree(f / "mask"), "has no folder mask/"),
        (lambda f: shutil.rmtree(f / "image"), "has no folder image/"),
        (lambda f: (f / "image" / "0001.png").unlink(), "has no picture 0001"),
        (lambda f: (f / "transforms.json").unlink(), "transforms.json does not exist"),
        (lambda f: (f / "transforms.json").write_text('{"w": 1'), "is not readable JSON"),
        (edited(lambda d: (d.pop("fl_x"), d.pop("fl_y"))), "the key 'fl_x' is missing"),
        (edited(lambda d: d.update(fl_x=0)), "no positive focal length"),
        (edited(lambda d: d["frames"].clear()), "at least two frames"),
        (edited(lambda d: d["frames"][4]["transform_matrix"][0].__setitem__(0, 9.0)), "frame 4 .*not a rotation"),
        (edited(lambda d: d["frames"][4].update(file_path="image/0003.png")), "names a file twice"),
        (edited(lambda d: d["frames"][0]["transform_matrix"].clear()), "not a readable transforms.json"),
        (
            edited(lambda d: d.update(k1=0.1)),
            "has a lens that distorts; bring the capture in with eyeball-relight import",
        ),
        (edited(lambda d: d["frames"][1].update(fl_x=99)), "has several cameras"),
    ],
)
def test_broken_captures_are_named(copy, break_it, message):
    break_it(copy)
    with pytest.raises(InputError, match=message):
        captures.read(copy, print)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        captures.read(tmp_path / "none", print)
