"""The head mesh for engines: a binary glTF 2.0 file with ARKit's morph targets, a skeleton, a texture and the clip."""

import json
from typing import Any

import numpy as np
import roma
import torch
from recon4d import images, mesh
from recon4d.files import write_bytes
from recon4d.formats import arkit
from recon4d.head import JOINTS, HeadModel
from recon4d.runs import claim

from gaussian_avatar import head_texture
from gaussian_avatar.runs import Run

FILE = "head.glb"
FLOAT, BYTE, SHORT, INT = 5126, 5121, 5123, 5125  # glTF's names of types
VERTICES, INDICES = 34962, 34963  # what a view is for
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
LOOKS = {"Down": (1, 1), "Up": (-1, 1), "Left": (1, 0), "Right": (-1, 0)}  # sign and axis: pitch 1, yaw 0


def export_head(run: Run, force: bool = False, texture_size: int = 1024) -> dict[str, Any]:
    """Write `head.glb` into the run's folder: the person's head mesh at rest, for Unity, Unreal, Blender or three.js.

    Morph targets are the head model's expressions by name, with the open head all 52 of ARKit's that it has; joints are
    `JOINTS`; the texture is what the avatar looks like (`head_texture.bake`), unlit; the animation is the clip.

    Raises InputError for a file that exists, unless `force` replaces it, and as `head_texture.bake` does.
    """
    with claim(run.folder, "gaussian-avatar export glb", force=force, names=(FILE,)):
        path = run.folder / FILE
        names, content = glb_of(run, texture_size)
        write_bytes(path, content)
    return {"file": str(path), "bytes": len(content), "targets": len(names), "frames": len(run.track)}


def glb_of(run: Run, texture_size: int = 1024) -> tuple[list[str], bytes]:
    """Names of the morph targets, and the file's bytes."""
    head = run.head
    shape = torch.from_numpy(run.track.shape[None])
    places, uv, faces = head_texture.layout(head)
    rest = head(shape=shape)
    normals = mesh.vertex_normals(rest, head.faces)[0].numpy()[places]
    joints = head.joints(shape)[0].numpy()
    targets = _targets(head, shape)
    strongest = np.argsort(-head.weights.numpy()[places], axis=1, kind="stable")[:, :4]
    weights = np.take_along_axis(head.weights.numpy()[places], strongest, 1)
    file = _File()
    attributes = {
        "POSITION": file.add(rest[0].numpy()[places], VERTICES, bounds=True),
        "NORMAL": file.add(normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-9), VERTICES),
        "TEXCOORD_0": file.add(np.stack([uv[:, 0], 1 - uv[:, 1]], 1), VERTICES),  # v down
        "JOINTS_0": file.add(np.where(weights > 0, strongest, 0).astype(np.uint8), VERTICES),
        "WEIGHTS_0": file.add(weights / weights.sum(1, keepdims=True), VERTICES),
    }
    primitive = {
        "attributes": attributes,
        "indices": file.add(faces.reshape(-1).astype(np.uint32), INDICES),
        "material": 0,
        "targets": [{"POSITION": file.add(moved[places], VERTICES, bounds=True)} for moved in targets.values()],
    }
    inverse = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    inverse[:, 3, :3] = -joints  # by columns, as glTF has matrices
    picture = images.encode(".png", (head_texture.bake(run, texture_size) * 255 + 0.5).astype(np.uint8))
    first = 1  # node of the first joint
    nodes: list[dict[str, Any]] = [{"name": "head", "mesh": 0, "skin": 0}]
    for j, (name, parent) in enumerate(zip(JOINTS, head.parents)):
        place = joints[j] - (joints[parent] if parent >= 0 else 0)
        children = [first + k for k, other in enumerate(head.parents) if other == j]
        nodes.append({"name": name, "translation": place.tolist()} | ({"children": children} if children else {}))
    content = {
        "asset": {"version": "2.0", "generator": "gaussian-avatar"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0, first]}],
        "nodes": nodes,
        "meshes": [
            {
                "primitives": [primitive],
                "weights": [0.0] * len(targets),
                "extras": {"targetNames": list(targets)},
            }
        ],
        "skins": [
            {
                "joints": [first + j for j in range(5)],
                "skeleton": first,
                "inverseBindMatrices": file.add(inverse.reshape(-1, 16)),
            }
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0.0,
                    "roughnessFactor": 1.0,
                },
                "extensions": {"KHR_materials_unlit": {}},  # its light is in the texture
            }
        ],
        "textures": [{"source": 0}],
        "images": [{"mimeType": "image/png", "bufferView": file.view(picture)}],
        "animations": [_animation(run, file, list(targets), joints, first)],
    }
    return list(targets), file.whole(content)


def _targets(head: HeadModel, shape: torch.Tensor) -> dict[str, np.ndarray]:
    """How far each morph target moves the vertices (V, 3), by name."""
    names = head.expression_names or tuple(f"expression{i}" for i in range(min(head.n_expression, 100)))
    moved = {name: head.expressiondirs[:, :, i].numpy() for i, name in enumerate(names)}
    if set(names) & set(arkit.NAMES):
        rest = head(shape=shape)
        for eye, side in enumerate(("Left", "Right")):
            for way, (sign, axis) in LOOKS.items():
                angles = torch.zeros(1, 2, 3)
                angles[0, eye, axis] = sign * arkit.FULL_LOOK
                looking = head(shape=shape, eyes=roma.euler_to_rotmat("YXZ", angles))
                # To the person's left is out for the left eye, in for the right one.
                named = way if axis else ("Out" if way == side else "In")
                moved[f"eyeLook{named}{side}"] = (looking - rest)[0].numpy()
        moved = {name: moved[name] for name in (*arkit.NAMES, *names) if name in moved}
    elif head.eyelids is not None:
        moved |= {f"eyeBlink{side}": head.eyelids[:, :, i].numpy() for i, side in enumerate(("Left", "Right"))}
    return moved


def _animation(run: Run, file: "_File", names: list[str], joints: np.ndarray, first: int) -> dict[str, Any]:
    """The training clip: weights of the targets, turns of the neck, and where it is; without names jaw and eyes too."""
    track, n = run.track, len(run.track)
    rest = run.motion.inputs[:, -29:]
    turns = roma.special_gramschmidt(rest[:, :24].reshape(n, 4, 2, 3).transpose(-1, -2)).transpose(-1, -2)
    amounts = np.zeros((n, len(names)), np.float32)
    moved = {"neck": turns[:, 0]}
    if set(names) & set(arkit.NAMES) and run.head.expression_names:
        values = arkit.of_track(track, run.head).values
        for column, name in enumerate(names):
            amounts[:, column] = values[:, arkit.NAMES.index(name)] if name in arkit.NAMES else 0
    else:
        common = min(track.expression.shape[1], len(names))
        amounts[:, :common] = track.expression[:, :common]
        for i, side in enumerate(("Left", "Right")):
            if f"eyeBlink{side}" in names:
                amounts[:, names.index(f"eyeBlink{side}")] = track.eyelids[:, i]
        moved |= {"jaw": turns[:, 1], "left_eye": turns[:, 2], "right_eye": turns[:, 3]}
    times = file.add((np.arange(n) / track.fps).astype(np.float32), bounds=True)
    tracks = [(0, "weights", file.add(amounts.reshape(-1)))]
    tracks.append((first, "translation", file.add(joints[0] + rest[:, 26:].numpy())))
    for name, R in moved.items():
        tracks.append((first + JOINTS.index(name), "rotation", file.add(roma.rotmat_to_unitquat(R).numpy())))
    return {
        "name": "clip",
        "samplers": [{"input": times, "output": output} for _, _, output in tracks],
        "channels": [
            {"sampler": i, "target": {"node": node, "path": path}} for i, (node, path, _) in enumerate(tracks)
        ],
    }


class _File:
    """The binary part of a file while it is filled."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, content: bytes, target: int | None = None) -> int:
        """Add bytes; the number of their view."""
        view = {"buffer": 0, "byteOffset": sum(map(len, self.blocks)), "byteLength": len(content)}
        self.views.append(view | ({} if target is None else {"target": target}))
        self.blocks.append(content + bytes(-len(content) % 4))
        return len(self.views) - 1

    def add(self, values: np.ndarray, target: int | None = None, bounds: bool = False) -> int:
        """Add an array (n,) or (n, k); the number of its accessor. `bounds` says its least and largest values too."""
        kinds = {np.dtype(np.uint8): BYTE, np.dtype(np.uint16): SHORT, np.dtype(np.uint32): INT}
        if values.dtype not in kinds:
            values = values.astype(np.float32)
        width = values.shape[1] if values.ndim == 2 else 1
        accessor: dict[str, Any] = {
            "bufferView": self.view(np.ascontiguousarray(values).tobytes(), target),
            "componentType": kinds.get(values.dtype, FLOAT),
            "count": len(values),
            "type": KINDS[width],
        }
        if bounds:
            accessor |= {
                key: np.atleast_1d(find(values, 0)).tolist() for key, find in (("min", np.min), ("max", np.max))
            }
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def whole(self, content: dict[str, Any]) -> bytes:
        """The file: header, JSON, binary part."""
        binary = b"".join(self.blocks)
        content = content | {
            "buffers": [{"byteLength": len(binary)}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % 4)
        chunks = b"".join(
            len(part).to_bytes(4, "little") + kind + part for part, kind in ((text, b"JSON"), (binary, b"BIN\0"))
        )
        return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks
