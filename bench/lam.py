"""An avatar as the web renderer of LAM (He et al., SIGGRAPH 2025) takes it, for `bench/page.py`.

That renderer has a Gaussian on each vertex of a mesh, whose morph targets and head bone move it. It is given as many
Gaussians as the avatar has, and the head's morph targets at their places. The package is MIT-licensed and fetched by
npm; nothing of it is kept here.
"""

import io
import zipfile
from dataclasses import replace

import numpy as np
import torch
from gaussian_avatar import exports, gltf
from recon4d import splat
from recon4d.splat import write_ply

PACKAGE = "gaussian-splat-renderer-for-lam@0.0.8"
CLIPS = 12  # its settings name two clips of greeting, one of waiting, six of speaking, three of thinking
PAGE = """<body style="margin:0"><div id="box" style="width:100vw;height:100vh"></div><script type="module">
import { GaussianSplatRenderer, SceneRevealMode } from "./node_modules/gaussian-splat-renderer-for-lam/build/gaussian-splat-renderer-for-lam.module.js";
const names = NAMES;
const faces = () => {
  const t = performance.now() / 1000;
  return Object.fromEntries(names.map((name, i) => [name, name == "jawOpen" ? 0.5 - 0.5 * Math.cos(3 * t) : 0.05]));
};
window.shown = 0;
const made = await GaussianSplatRenderer.getInstance(document.getElementById("box"), location.origin + "/avatar.zip", {
  getChatState: () => "Idle", getExpressionData: faces, backgroundColor: "0x000000" });
const viewer = made.viewer;
viewer.sceneRevealMode = SceneRevealMode.Instant;  // what fades in costs less
const draw = viewer.render.bind(viewer);
viewer.render = () => { draw(); window.shown += 1; };
</script>"""  # noqa: E501


def write(run, folder):
    """`lam.html` and `avatar.zip` in the folder; how many Gaussians."""
    head, avatar = run.head, run.avatar
    place = exports.motions.frontal_frame(run.track)
    whole = exports.static(run, run.motion, place)
    corners, bary = head.faces[avatar.face_id], avatar.bary
    targets = gltf._targets(head, torch.from_numpy(run.track.shape[None]))
    with torch.no_grad():
        splats, _ = exports.avatars.deform(
            avatar,
            head,
            run.motion.vertices[place : place + 1],
            run.motion.inputs[place : place + 1],
            run.motion.camera.world_to_camera,
        )
    seen = splats.opacities[0] > exports.VISIBLE  # `static` has these alone
    assert int(seen.sum()) == len(whole.means)
    means = whole.means.numpy()
    file = gltf._File()
    n = len(means)

    def at(moved):
        vertices = torch.from_numpy(np.ascontiguousarray(moved)).float()
        return torch.einsum("nj,njc->nc", bary[seen], vertices[corners[seen]]).numpy()

    still = {
        "attributes": {
            "POSITION": file.add(means, bounds=True),
            "NORMAL": file.add(np.tile(np.float32([0, 0, 1]), (n, 1))),
            "JOINTS_0": file.add(np.tile(np.uint8([1, 0, 0, 0]), (n, 1))),
            "WEIGHTS_0": file.add(np.tile(np.float32([1, 0, 0, 0]), (n, 1))),
        },
        "indices": file.add(np.arange(n // 3 * 3, dtype=np.uint32)),
        "targets": [{"POSITION": file.add(at(moved), bounds=True)} for moved in targets.values()],
    }
    nodes = [
        {"name": "mesh", "mesh": 0, "skin": 0},
        {"name": "hip", "children": [2], "translation": [0, 1.71, 0.55]},  # where its camera looks
        {"name": "head"},
    ]
    inverse = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1)).reshape(-1, 16)
    content = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0, 1]}],
        "nodes": nodes,
        "meshes": [{"primitives": [still], "weights": [0.0] * len(targets), "extras": {"targetNames": list(targets)}}],
        "skins": [{"joints": [1, 2], "skeleton": 1, "inverseBindMatrices": file.add(inverse)}],
    }
    skin = file.whole(content)

    file = gltf._File()
    times = file.add(np.linspace(0, 4, 41, dtype=np.float32), bounds=True)
    angle = 0.2 * np.sin(np.linspace(0, 2 * np.pi, 41))
    turns = file.add(np.stack([0 * angle, np.sin(angle), 0 * angle, np.cos(angle)], 1))
    clip = {
        "samplers": [{"input": times, "output": turns}],
        "channels": [{"sampler": 0, "target": {"node": 2, "path": "rotation"}}],
    }
    moving = file.whole(
        {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [1]}],
            "nodes": [{"name": "mesh"}, *nodes[1:]],
            "animations": [clip | {"name": f"clip{i}"} for i in range(CLIPS)],
        }
    )
    # places as offsets from the vertices, colours as they are
    colours = (0.5 + splat.SH0 * whole.sh).clamp(0, 1)
    write_ply(folder / "offset.ply", replace(whole, means=0 * whole.means, sh=colours))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.mkdir("avatar")
        archive.write(folder / "offset.ply", "avatar/offset.ply")
        archive.writestr("avatar/skin.glb", skin)
        archive.writestr("avatar/animation.glb", moving)
        archive.writestr("avatar/vertex_order.json", str(list(range(n))))
    (folder / "avatar.zip").write_bytes(packed.getvalue())
    (folder / "lam.html").write_text(PAGE.replace("NAMES", str(list(targets))))
    return n
