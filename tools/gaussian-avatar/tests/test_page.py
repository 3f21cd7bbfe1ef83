"""The avatar as one HTML file: the same picture as `render`, in a browser without a network."""

import base64
import json
from dataclasses import replace

import browser
import cv2
import numpy as np
import pytest
import roma
import torch
from gaussian_avatar import avatars, driving, model_file, motions, pages, rendering, runs
from gaussian_avatar.cli import main
from gaussian_avatar.config import load_config
from recon4d import InputError
from recon4d.formats import arkit
from recon4d.formats.track import read as read_track
from recon4d.settings import write

LEAST = 40.0  # dB


def run_in(folder, track, head, **options):
    """A run whose avatar, in smooth colours, has a basis that moves, turns and colours it."""
    folder.mkdir(parents=True)
    track.write(folder / "track.npz")
    write(folder / "config.yaml", load_config("cpu-quick", **options))
    generator = torch.Generator().manual_seed(1)
    avatar = avatars.new(head, 64, motions.n_inputs(head), 4, 16, None, 0.9, generator, stretch=True)
    places = (avatar.bary[..., None] * head.v_template[head.faces[avatar.face_id]]).sum(1)
    avatar = replace(avatar, sh0=2 * (12 * places).sin(), seen=torch.ones(len(avatar), dtype=torch.bool))
    spreads = {"means": 5e-4, "log_scales": 0.3, "quats": 0.3, "mean_basis": 3e-4, "quat_basis": 0.2, "sh0_basis": 0.3}
    changed = {
        name: getattr(avatar, name) + spread * torch.randn(getattr(avatar, name).shape, generator=generator)
        for name, spread in spreads.items()
    }
    model_file.write_ply(folder / "model.ply", replace(avatar, **changed))
    return runs.open_run(folder, "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir, head):
    return run_in(tmp_path_factory.mktemp("page") / "one/w", read_track(data_dir / "one/track.npz"), head)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The command's file, opened from the disk with the network off."""
    with pytest.raises(SystemExit) as stop:
        main(["export", "--subject", "one", "--work-name", "w", "--output-dir", str(run.folder.parents[1]),
              "--format", "html"])  # fmt: skip
    assert stop.value.code == 0
    with browser.open_page(500, 400) as page:
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.context.set_offline(True)
        page.goto((run.folder / "avatar.html").as_uri() + "#frame=0&background=000000")
        page.evaluate("avatar.ready.then(() => 1)")
        yield page
        assert not wrong and len(asked) == 1, (wrong, asked)


def shown(page, width, height):
    """The page's picture, RGB (H, W, 3)."""
    content = base64.b64decode(page.evaluate(f"avatar.snapshot({width}, {height})").split(",")[1])
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def agrees(page, run, motion, frame, background=0.0):
    """That the page shows what `render` writes of a frame."""
    one = replace(motion, vertices=motion.vertices[frame : frame + 1], inputs=motion.inputs[frame : frame + 1])
    wanted = next(rendering.render(run, one, torch.full((3,), background))).astype(float)
    seen = shown(page, motion.camera.width, motion.camera.height)
    assert np.ptp(wanted) > 150
    error = ((seen - wanted) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-3)) > LEAST, frame


def test_the_same_picture_as_render(page, run):
    assert page.evaluate("[avatar.frames, avatar.playing, avatar.names.length]") == [24, False, 44]
    for frame in (0, 13):
        page.evaluate(f"avatar.frame = {frame}")
        agrees(page, run, run.motion, frame)
    page.evaluate("avatar.background = 'ffffff'")
    agrees(page, run, run.motion, 13, 1.0)
    page.evaluate("avatar.background = '000000'")
    assert (run.folder / "avatar.html").stat().st_size < 3e6


def test_set_moves_what_it_names(page, run):
    names, track = run.head.expression_names, run.track.take([5])
    page.evaluate("avatar.frame = 5; avatar.set({jawOpen: 0.4, mouthSmile: 0.7, headYaw: 20, gazeYaw: -15})")
    expression = track.expression.copy()
    for name, value in {"jawOpen": 0.0, "mouthSmileLeft": 0.7, "mouthSmileRight": 0.7}.items():
        expression[0, names.index(name)] = value

    def yaw(R, degrees):
        angles = roma.rotmat_to_euler("YXZ", torch.from_numpy(R.astype(np.float32)), degrees=True)
        angles[..., 0] = degrees
        return roma.euler_to_rotmat("YXZ", angles, degrees=True).numpy()

    world = yaw(motions.AXES @ track.R @ track.neck, 20.0)
    neck = track.R.transpose(0, 2, 1) @ motions.AXES.astype(np.float32) @ world
    # The clip opens the mouth by the jaw's joint: so does jawOpen.
    opening, opened, _, _ = arkit.jaw_table(run.head)
    vector = torch.tensor([[np.interp(0.4, opened, opening), 0, 0]]).float()
    jaw = roma.rotvec_to_rotmat(vector).numpy()
    changed = replace(track, expression=expression, neck=neck, jaw=jaw, eyes=yaw(track.eyes, -15.0))
    wanted = motions.from_track(changed, run.head, origin=run.track.t[0])
    agrees(page, run, replace(wanted, camera=run.motion.camera), 0)
    page.evaluate("avatar.set({jawOpen: null, mouthSmile: null, headYaw: null, gazeYaw: null})")
    agrees(page, run, run.motion, 5)
    with pytest.raises(Exception, match="grin is none of browDownLeft"):
        page.evaluate("avatar.set({grin: 1})")


def test_orbit_is_that_of_render(page, run):
    page.evaluate("avatar.frame = 0; avatar.orbit(25)")
    camera = motions.orbit(replace(run.motion, vertices=run.motion.vertices[:1]), torch.tensor([-25.0]))
    turned = replace(run.motion, camera=replace(camera, world_to_camera=camera.world_to_camera[0]))
    agrees(page, run, turned, 0)
    page.evaluate("avatar.orbit(0)")


def test_a_lost_gpu_comes_back(page, run):
    page.evaluate("""async () => {
      const lost = document.getElementById("view").getContext("webgl2").getExtension("WEBGL_lose_context");
      lost.loseContext();
      await new Promise((done) => setTimeout(done, 50));
      lost.restoreContext();
      await new Promise((done) => setTimeout(done, 50));
      avatar.frame = 7;
    }""")
    agrees(page, run, run.motion, 7)


def test_dropped_files(page, run, tmp_path):
    """Another person's track and activations: as `driving` has them."""
    rng = np.random.default_rng(2)
    track = replace(
        run.track.take(slice(4, 13)),
        shape=rng.normal(size=run.track.shape.shape).astype(np.float32),
        K=run.track.K * np.float32([[1.1], [1.1], [1]]),
    )
    track.write(tmp_path / "other.npz")
    activations = arkit.of_track(track, run.head)
    arkit.write(tmp_path / "phone.csv", activations)
    named = [dict(zip(arkit.NAMES, map(float, row))) for row in activations.values]
    frames = [{"faceBlendshapes": [{"categories": [{"categoryName": k, "score": v} for k, v in one.items()]}]}
              for one in named]  # fmt: skip
    (tmp_path / "web.json").write_text(json.dumps({"fps": 25, "frames": frames}))
    drop = """async ([name, data, transfer]) => {
      avatar.transfer = transfer;
      const files = new DataTransfer();
      files.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
      const taken = new Promise((done) => addEventListener("avatarclip", done, { once: true }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
      await taken;
      avatar.pause();
      avatar.frame = 6;
      return document.getElementById("note").textContent;
    }"""
    for name in ("other.npz", "phone.csv", "web.json"):
        data = base64.b64encode((tmp_path / name).read_bytes()).decode()
        for transfer in ("absolute", "relative"):
            assert "phone" not in page.evaluate(drop, [name, data, transfer])
            assert page.evaluate("avatar.frames") == 9
            agrees(page, run, driving.motion_of(run, tmp_path / name, transfer)[0], 6)
    junk = base64.b64encode(b"a,b\n1,2\n").decode()
    assert page.evaluate(drop, ["bad.csv", junk, "absolute"]) == "bad.csv has none of ARKit's names"
    assert "is none of track.npz" in page.evaluate(drop, ["x.obj", junk, "absolute"])


def test_panel(page, run):
    """Sliders follow the frame until they are touched; the clip plays."""
    page.evaluate("avatar.pause(); avatar.frame = 0")
    page.locator("input[name=mouthSmile]").fill("0.5")
    page.wait_for_function("document.querySelector('label.pinned')?.textContent === 'mouthSmile'")
    page.get_by_text("Reset").click()
    page.wait_for_function("!document.querySelector('label.pinned')")
    page.get_by_text("Play").click()
    page.wait_for_function("avatar.frame > 0")
    page.get_by_text("Pause").click()
    assert not page.evaluate("avatar.playing")
    page.evaluate("postMessage({set: {jawOpen: 1}}, '*')")
    page.wait_for_function("document.querySelector('label.pinned')?.textContent === 'jawOpen'")
    page.evaluate("avatar.reset()")


def test_a_head_without_names(page, data_dir, head, tmp_path):
    """As FLAME has none: components by their numbers, the jaw's joint, the eyelids; 16 bits."""
    track = read_track(data_dir / "one/track.npz")
    plain = replace(head, expression_names=())
    run = replace(run_in(tmp_path / "one/w", track, head), head=plain)
    text = pages.page_of(run, run.motion, run.track, bits=16)
    (tmp_path / "plain.html").write_text(text)
    with pytest.raises(InputError, match="none of the drivers"):
        pages.export_page(run, tmp_path / "plain.html")
    bare = page.context.browser.new_page()
    bare.goto((tmp_path / "plain.html").as_uri() + "#bare&frame=3&background=none")
    bare.evaluate("avatar.ready.then(() => { avatar.background = '000000'; })")
    agrees(bare, run, run.motion, 3)
    assert not bare.locator("#panel").is_visible()
    bare.evaluate("avatar.set({jawOpen: 0.8, eyeBlink: 1})")
    turn = roma.rotvec_to_rotmat(torch.tensor([[np.radians(20.0), 0, 0]])).float().numpy()
    one = replace(track.take([3]), jaw=turn, eyelids=np.ones((1, 2), np.float32))
    wanted = motions.from_track(one, plain, origin=track.t[0])
    agrees(bare, run, replace(wanted, camera=run.motion.camera), 0)
    bare.close()
