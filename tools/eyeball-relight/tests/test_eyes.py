"""Eyes: landmarks in many views lifted to space, marks and masks painted on maps and rendered."""

import numpy as np
import pytest
import torch
from eyeball_relight import assets, captures, eyes, objfile, synth
from eyeball_relight.pictures import read_picture, write_picture
from recon4d import InputError, mesh
from recon4d.files import write_npz


def seen_from(point, camera, noise, rng):
    pixels, _ = camera.project(torch.tensor(point, dtype=torch.float32)[None])
    return pixels[:, 0].numpy() + rng.normal(0, noise, (len(pixels), 2))


def test_triangulation_finds_the_point_in_spite_of_outliers():
    camera, rng = synth.orbit(20, 256, 1), np.random.default_rng(0)
    truth = np.array([0.03, 0.05, 0.08])
    pixels = seen_from(truth, camera, 0.3, rng)
    pixels[::4] += rng.uniform(15, 60, (5, 2))
    seen = np.ones(20, bool)
    seen[3] = False
    pixels[3] = np.nan
    found, agree = eyes.triangulate(pixels, seen, camera)
    assert np.linalg.norm(found - truth) < 1e-3
    assert not agree[::4].any() and not agree[3] and agree.sum() >= 13
    # without noise it is exact
    exact, _ = eyes.triangulate(seen_from(truth, camera, 0, rng), np.ones(20, bool), camera)
    assert np.linalg.norm(exact - truth) < 1e-6


def test_views_that_do_not_agree_are_refused():
    camera, rng = synth.orbit(6, 256, 1), np.random.default_rng(0)
    with pytest.raises(InputError, match="no three views agree"):
        eyes.triangulate(rng.uniform(0, 256, (6, 2)), np.array([True, True, False, False, False, False]), camera)


@pytest.fixture
def export(tmp_path, data, head):
    """What the first step would export if it were perfect: the true surface, eyeballs and all, with its maps."""
    asset, truth = synth.head_asset(head, 3)
    folder = tmp_path / "export"
    face = asset["face"]
    # the eyeballs take a quarter of the texture each, at its foot
    vertices, vt, faces, ft = [face.vertices], [face.vt * 0.5 + 0.5], [face.faces], [face.ft]
    for k, part in enumerate(("left", "right")):
        ball = asset[part]
        faces.append(ball.faces + sum(map(len, vertices)))
        ft.append(ball.ft + sum(map(len, vt)))
        vertices.append(ball.vertices)
        vt.append(ball.vt * 0.48 + torch.tensor([0.5 * k, 0.0]))
    joined = assets.Surface(
        torch.cat(vertices),
        mesh.vertex_normals(torch.cat(vertices), torch.cat(faces)),
        torch.cat(faces),
        torch.cat(vt),
        torch.cat(ft),
        *(torch.zeros(2, 2, c) for c in (3, 1, 1)),
    )
    objfile.write(folder / "mesh_uv.obj", joined)
    texels = mesh.bake_uv(joined.vt, joined.ft, (512, 512))
    coord = texels.interpolate(joined.vertices, joined.faces)
    write_npz(folder / "coord.npz", coord=coord.numpy(), mask=texels.mask.numpy())
    return folder, joined, truth


def test_green_marks_are_points_on_the_eyeball(export, tmp_path):
    folder, _, truth = export
    coord, mask = eyes.read_maps(folder)
    painted = np.full((512, 512, 3), 0.6, np.float32)
    spots = [(400, 100), (400, 140), (380, 120), (420, 120)]  # rows and columns in the left eyeball's part
    for row, column in spots:
        painted[row - 1 : row + 2, column - 1 : column + 2] = eyes.GREEN
    write_picture(tmp_path / "marked.png", painted)
    points = eyes.green_marks(tmp_path / "marked.png", coord, mask)
    away = np.linalg.norm(points - truth["left_centre"], axis=1)
    assert points.shape == (4, 3) and np.abs(away - truth["radius"]).max() < 2e-4
    expected = np.array([coord[spot] for spot in spots])
    assert np.linalg.norm(points[:, None] - expected, axis=2).min(0).max() < 2e-4


def test_wrong_marks(export, tmp_path):
    coord, mask = eyes.read_maps(export[0])
    write_picture(tmp_path / "grey.png", np.full((512, 512, 3), 0.5))
    write_picture(tmp_path / "small.png", np.full((20, 30, 3), 0.5))
    with pytest.raises(InputError, match="no green marks"):
        eyes.green_marks(tmp_path / "grey.png", coord, mask)
    with pytest.raises(InputError, match="30x20 texels and the export 512"):
        eyes.green_marks(tmp_path / "small.png", coord, mask)


def test_from_landmarks_to_masks(export, data, head, tmp_path):
    """Lids seen in every picture become an outline, a painted map, landmarks on the ball, masks like the true ones."""
    folder, _, truth = export
    loaded = captures.read(data, print)
    shape, _ = synth.head_asset(head, 3)
    vertices = torch.zeros_like(head.v_template)
    vertices[:] = shape["face"].vertices
    lids = head.landmarks(vertices[None])[0]
    landmarks = tmp_path / "landmarks"
    landmarks.mkdir()
    pixels, _ = loaded.camera.project(lids)
    rng = np.random.default_rng(0)
    for i, name in enumerate(loaded.names):
        if i != 2:  # one picture had no face
            np.save(landmarks / f"{name}.npy", 2 * (pixels[i].numpy() + rng.normal(0, 0.05, (68, 2))))
    listing = "\n".join(f'{{"file": "{name}.png", "width": 128, "height": 128}}' for name in loaded.names)
    (tmp_path / "landmarks.jsonl").write_text(listing)
    outlines, report = eyes.outlines(loaded, landmarks)
    assert report["views_with_landmarks"] == 10 and report["fewest_agreeing_views"] >= 8
    for side, index in eyes.IBUG.items():
        assert np.linalg.norm(outlines[side] - lids[list(index)].numpy(), axis=1).max() < 1e-3

    coord, mask = eyes.read_maps(folder)
    maps = {}
    for side in eyes.SIDES:
        painted, points = eyes.from_outline(outlines[side], coord, mask)
        away = np.linalg.norm(points - truth[f"{side}_centre"], axis=1)
        assert len(points) == 8 and np.abs(away - truth["radius"]).max() < 1.5e-3
        maps[side] = tmp_path / f"{side}.png"
        write_picture(maps[side], painted)
    out = tmp_path / "capture"
    captures.write_poses(out, [f"{name}.png" for name in loaded.names], loaded.camera)
    eyes.write_masks(out, folder / "mesh_uv.obj", **maps)
    for where in ("leye_mask", "reye_mask"):
        ours = np.stack([read_picture(out / where / f"{name}.png", 1) for name in loaded.names]) > 0.5
        theirs = np.stack([read_picture(data / "truth" / where / f"{name}.png", 1) for name in loaded.names]) > 0.5
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.5  # an eye is 4 pixels high


def test_wrong_landmarks(data, tmp_path):
    loaded = captures.read(data, print)
    with pytest.raises(InputError, match="has landmarks of 0 of the 11"):
        eyes.outlines(loaded, tmp_path)
    np.save(tmp_path / "0001.npy", np.zeros((5, 2)))
    with pytest.raises(InputError, match=r"0001\.npy has shape \(5, 2\)"):
        eyes.outlines(loaded, tmp_path)
    (tmp_path / "0001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"0001\.npy is not a readable landmark file"):
        eyes.outlines(loaded, tmp_path)


def test_a_map_without_white_is_refused(export, data, tmp_path):
    folder, _, _ = export
    write_picture(tmp_path / "black.png", np.zeros((64, 64)))
    loaded = captures.read(data, print)
    captures.write_poses(tmp_path / "c", [f"{n}.png" for n in loaded.names[:2]], loaded.camera)
    maps = dict.fromkeys(eyes.SIDES, tmp_path / "black.png")
    with pytest.raises(InputError, match="no view sees the white"):
        eyes.write_masks(tmp_path / "c", folder / "mesh_uv.obj", **maps)


def test_inside_a_ring():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angle), 0.5 * np.sin(angle), np.zeros(40)], 1) @ np.linalg.qr(np.eye(3) + 0.3)[0]
    rng = np.random.default_rng(0)
    local = rng.uniform(-1.5, 1.5, (500, 3))
    expected = (local[:, 0] ** 2 + 4 * local[:, 1] ** 2 < 1) & (np.abs(local[:, 2]) < 0.4)
    edge = np.abs(local[:, 0] ** 2 + 4 * local[:, 1] ** 2 - 1) < 0.1
    found = eyes.inside(local @ np.linalg.qr(np.eye(3) + 0.3)[0], ring, 0.4)
    assert (found == expected)[~edge].all()
