"""The avatar as one HTML file: model, head, clip and a renderer, opened from a disk without a network."""

import base64
import gzip
import html
import json
import string
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import rotations
from recon4d.files import write_text
from recon4d.formats import arkit
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from recon4d.runs import claim

from gaussian_avatar import avatars, driving, motions
from gaussian_avatar.driving import Transfer
from gaussian_avatar.motions import Motion, frontal_frame
from gaussian_avatar.runs import Run

PAGE = "avatar.html"
SCRIPTS = ("unpack", "rotations", "head", "gaussians", "renderer", "face", "view", "files", "drivers", "panel", "page")
STEPS = {8: (127, np.int8), 16: (32767, np.int16)}  # whole numbers that the largest value becomes, by bits
STILL = 1e-8  # metres: what moves a vertex less does not move it
Arrays = dict[str, np.ndarray]


def export_page(
    run: Run,
    track: str | Path | None = None,
    transfer: Transfer = "absolute",
    bits: int = 8,
    force: bool = False,
    log: Callable[[str], None] = lambda _: None,
    track_head_model: str | Path | None = None,
) -> dict[str, Any]:
    """Write `avatar.html` into the run's folder.

    Args:
        track: the clip that it plays; None is the training clip.
        transfer, log, track_head_model: see `driving.track_of`.
        bits: 8 or 16, of the basis.
        force: replace an earlier one.

    Raises InputError for a file that exists, unless `force` replaces it, and as `driving.track_of` does.
    """
    motion, driver = driving.motion_of(run, track, transfer, log, track_head_model)
    with claim(run.folder, "gaussian-avatar export html", force=force, inputs=[track], names=(PAGE,)):
        path = run.folder / PAGE
        write_text(path, page_of(run, motion, driver, bits))
    return {"file": str(path), "bytes": path.stat().st_size, "gaussians": int(_drawn(run).sum()), "frames": len(motion)}


def page_of(run: Run, motion: Motion, track: Track, bits: int = 8) -> str:
    """The page's text.

    Args:
        motion: the clip that it plays, N frames before one camera.
        track: what it was made of: its coefficients and frame rate.
        bits: 8 or 16: of the whole numbers that hold the avatar's basis.
    """
    expression = track.expression
    n_inputs = motions.n_inputs(run.head) - 29
    expressions = max(expression.shape[1], n_inputs)
    about, arrays = _avatar(run, bits)
    arrays |= _head(run.head, run.track.shape, expressions) | _clip(motion, expression, expressions)
    names = run.head.expression_names or tuple(map(str, range(expressions)))
    about |= {
        "expressions": expressions,
        "inputExpressions": n_inputs,
        "names": names[:expressions],
        "activations": bool(run.head.expression_names),
        "frontal": frontal_frame(track),
        "own": _own(run),
        "neutral": _neutral(run, expressions),
        "clip": {
            "frames": len(motion),
            "fps": track.fps,
            "expressions": expressions,
            **_camera(motion),
        },
    }
    folder = resources.files("gaussian_avatar") / "page"
    script = f"const ARKIT = {json.dumps(arkit.NAMES)};\n" + "\n".join(
        (folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
    )
    return string.Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{run.folder.parent.name}: {run.folder.name}"),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        content=base64.b64encode(_packed(about, arrays)).decode(),
    )


def _camera(motion: Motion) -> dict[str, Any]:
    return {
        "K": motion.camera.K.flatten().tolist(),
        "size": [motion.camera.width, motion.camera.height],
        "origin": motion.camera.world_to_camera[:3, 3].tolist(),
    }


def _own(run: Run) -> dict[str, Any]:
    """Where the avatar's own clip has the head, and what it moves: see page/drivers.js and `driving`."""
    frontal = frontal_frame(run.track)
    own: dict[str, Any] = _camera(run.motion) | {"translation": run.motion.inputs[frontal, -3:].tolist()}
    own["eyelids"] = driving.closes_eyelids(run)
    if driving.turns_jaw(run):
        table = arkit.jaw_table(run.head)
        own["jaw"] = {name: values.tolist() for name, values in zip(("opening", "opened", "forward", "aside"), table)}
    return own


def _neutral(run: Run, expressions: int) -> dict[str, Any]:
    """`driving.neutral` of the avatar's own clip; the translation is in the world of its first frame."""
    rest = driving.neutral(run.track, run.head)
    expression = np.zeros(expressions, np.float32)
    expression[: len(rest.expression)] = rest.expression
    return {
        "expression": expression.tolist(),
        "eyelids": rest.eyelids.tolist(),
        "turns": [R.flatten().tolist() for R in (rest.turn, rest.jaw, *rest.eyes)],
        "translation": (rest.place - motions.AXES @ run.track.t[0]).tolist(),
    }


def _packed(about: dict[str, Any], arrays: Arrays) -> bytes:
    """gzip of: length of a JSON text as uint32, the text, the arrays, each at a multiple of 8."""
    blocks, offset, listed = [], 0, []
    for name, array in arrays.items():
        content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        content += bytes(-len(content) % 8)
        listed.append({"name": name, "kind": array.dtype.name, "count": array.size, "offset": offset})
        blocks.append(content)
        offset += len(content)
    text = json.dumps({**about, "arrays": listed}).encode()
    text += b" " * (-(4 + len(text)) % 8)
    return gzip.compress(len(text).to_bytes(4, "little") + text + b"".join(blocks), 9, mtime=0)


def _drawn(run: Run) -> torch.Tensor:
    """(N,) which Gaussians can be seen at all."""
    avatar = run.avatar
    return (avatar.seen & (avatar.opacity_logits.detach().sigmoid() >= 1 / 255)).cpu()


def _avatar(run: Run, bits: int) -> tuple[dict[str, Any], Arrays]:
    """Gaussians, their basis as whole numbers with a scale for each vector and component, and the network."""
    avatar = run.avatar.to("cpu")
    kept = _drawn(run)
    faces, face_of = torch.unique(avatar.face_id[kept], return_inverse=True)
    steps, kind = STEPS[bits]
    linear = [layer for layer in avatar.mlp if isinstance(layer, torch.nn.Linear)]
    network = torch.cat([value.detach().flatten() for layer in linear for value in (layer.weight, layer.bias)])
    arrays: Arrays = {
        "corners": run.head.faces[faces].to(torch.int32).numpy().astype(np.uint32),
        "edges": avatars.uv_edges(run.head, faces).numpy(),
        "faceOf": face_of.to(torch.int32).numpy().astype(np.uint32),
        "bary": (avatar.bary[kept, :2].clamp(0, 1) * 65535).round().numpy().astype(np.uint16),
        "network": network.numpy().astype(np.float32),
    }
    if avatar.extent is not None:
        arrays["extents"] = avatars.extents(run.head.v_template, run.head.faces[faces]).numpy()
    for name, values in (
        ("offsets", avatar.means),
        ("logScales", avatar.log_scales),
        ("opacityLogits", avatar.opacity_logits),
        ("quats", avatar.quats),
        ("colours", avatar.sh0),
    ):
        arrays[name] = values.detach()[kept].numpy().astype(np.float32)
    for name, basis in (("offset", avatar.mean_basis), ("quat", avatar.quat_basis), ("colour", avatar.sh0_basis)):
        chosen = basis.detach()[:, kept].numpy()
        scale = np.maximum(np.abs(chosen).max(1, keepdims=True), 1e-12) / steps
        arrays[f"{name}Basis"] = np.round(chosen / scale).astype(kind)
        arrays[f"{name}Scales"] = scale[:, 0].astype(np.float32)
    about = {
        "gaussians": int(kept.sum()),
        "basis": len(avatar.mean_basis),
        "faces": len(faces),
        "layers": [[layer.in_features, layer.out_features] for layer in linear],
        "oneSided": run.config.model.one_sided,
        "stretch": avatars.STRETCH,
        "inputRange": [edge.tolist() for edge in motions.input_range(run.motion)],
    }
    return about, arrays


def _head(head: HeadModel, shape: np.ndarray, expressions: int) -> Arrays:
    """The head of one person: what page/head.js wants."""
    identity = torch.from_numpy(shape[None])
    columns = [head.expressiondirs[:, :, :expressions], head.posedirs]
    columns.append(torch.zeros(*head.v_template.shape, 2) if head.eyelids is None else head.eyelids)
    moves = torch.cat(columns, 2).permute(2, 0, 1).numpy()  # (C, V, 3)
    counts, places, whole, scales = [], [], [], []
    for move in moves:
        most = np.abs(move).max(1)
        moved = np.flatnonzero(most > STILL)
        scale = max(float(most.max()), 1e-12) / 32767
        counts.append(len(moved))
        places.append(moved)
        whole.append(np.round(move[moved] / scale))
        scales.append(scale)
    return {
        "template": head.shaped(identity)[0].numpy().astype(np.float32),
        "joints": head.joints(identity)[0].numpy().astype(np.float32),
        "jointBasis": head.joint_basis[2][:, :, :expressions].numpy().astype(np.float32),
        "weights": head.weights.numpy().astype(np.float32),
        "counts": np.array(counts, np.uint32),
        "places": np.concatenate(places).astype(np.uint32),
        "moves": np.concatenate(whole).astype(np.int16),
        "columnScales": np.array(scales, np.float32),
    }


def _clip(motion: Motion, expression: np.ndarray, expressions: int) -> Arrays:
    """The clip as page/face.js wants it; turns, eyelids and translation are those of the blendshape input."""
    n = len(motion)
    padded = np.zeros((n, expressions), np.float32)
    padded[:, : expression.shape[1]] = expression
    rest = motion.inputs[:, -29:]
    return {
        "clipExpression": padded,
        "clipTurns": rotations.from_6d(rest[:, :24].reshape(n, 4, 6)).numpy().astype(np.float32),
        "clipEyelids": rest[:, 24:26].numpy().astype(np.float32),
        "clipTranslation": rest[:, 26:].numpy().astype(np.float32),
    }
