"""What is in a head model file, and a picture that shows whether its landmarks sit where they should."""

from pathlib import Path
from typing import Any

import numpy as np
import recon4d.head
import torch
from recon4d.files import InputError
from recon4d.head import JOINTS, HeadModel
from recon4d.head.dense import beside, write_dense
from recon4d.images import write_png
from recon4d.runs import claim_file

from flame_encoder import drawing
from flame_encoder.embedding import embed as learn_dense
from flame_encoder.report import Progress

PEOPLE = 400  # drawn by --embed; about a minute on one core
LICENCES = {
    True: "Apache-2.0 (Anny) and CC0 (MakeHuman): free to use and to redistribute",
    False: "FLAME's own terms apply (registration; FLAME 2020 is for non-commercial research, FLAME 2023 is CC-BY-4.0)",
}


def check(
    path: str | Path | None = None,
    landmark_embedding: str | Path | None = None,
    *,
    render: str | Path | None = None,
    embed: Progress | None = None,
    people: int = PEOPLE,
    force: bool = False,
) -> dict[str, Any]:
    """What the head model in `path` holds, see `summary`, and a picture of it in the PNG `render`.

    Args:
        path: a FLAME file; the open head when None.
        embed: draw `people` with the model and learn from them where MediaPipe's dense points are on it; kept in
            `<stem>_dense.npz` beside `path`, where `recon4d.head.load` finds it.

    Raises:
        InputError: a file that is no sound head model; a picture that exists without `force`.
    """
    head = recon4d.head.load(path, landmark_embedding)
    found = summary(head)
    require_sound(head, path or head.name)
    if embed is not None:
        if path is None:
            raise InputError("--embed is for a head model of your own; the open head has its points already")
        place = claim_file(beside(Path(path)), force=force, inputs=[path])
        with embed("embed", people) as report:
            write_dense(place, learn_dense(head, people, progress=lambda done: report(done, "")))
        found |= {"dense_points": str(place)}
    if render is not None:
        draw(head, claim_file(render, force=force, inputs=[path, landmark_embedding]))
    return found


def summary(head: HeadModel) -> dict[str, Any]:
    """Counts, joints (metres), extent and licence note of a head model, as plain numbers and strings."""
    joints = head.joints()[0]
    extent = head.v_template.max(0).values - head.v_template.min(0).values
    return {
        "name": head.name,
        "vertices": len(head.v_template),
        "faces": len(head.faces),
        "shape_components": head.n_shape,
        "expression_components": head.n_expression,
        "joints": {name: [round(float(x), 5) for x in joint] for name, joint in zip(JOINTS, joints)},
        "size_m": [round(float(x), 4) for x in extent],
        "eyelids": head.eyelids is not None,
        "dense": 0 if head.dense is None else len(head.dense.faces),
        "landmarks": 0 if head.landmark_faces is None else len(head.landmark_faces),
        "uv": head.vt is not None,
        "skinning_error": float((head.weights.sum(1) - 1).abs().max()),
        "licence": LICENCES[head.name == "open-head"],
    }


def require_sound(head: HeadModel, path: str | Path) -> None:
    """Raise InputError for what reads well but cannot be right: skinning, joints, size, landmarks."""
    skinning = float((head.weights.sum(1) - 1).abs().max())
    if skinning > 1e-3:
        raise InputError(f"{path}: skinning weights do not sum to one (error {skinning:.3g})")
    joints = float((head.J_regressor.sum(1) - 1).abs().max())
    if joints > 1e-2:
        raise InputError(f"{path}: the rows of J_regressor do not sum to one (error {joints:.3g})")
    extent = float((head.v_template.max(0).values - head.v_template.min(0).values).max())
    if not 0.05 < extent < 2:
        raise InputError(f"{path}: the head is {extent:.3g} large; it must be in metres, a head is about 0.3")
    if head.landmark_faces is not None:
        points = head.landmarks(head.v_template[None])[0]
        right, left = points[36:42].mean(0), points[42:48].mean(0)
        mouth = points[48:68].mean(0)
        if right[0] >= left[0] or mouth[1] >= min(right[1], left[1]):
            raise InputError(
                f"{path}: the landmarks are not in iBUG order (36-41 the person's right eye at -x, 42-47 the left at "
                "+x, 48-67 the mouth below them); give the model's own with --landmark-embedding"
            )


def draw(head: HeadModel, path: Path, size: int = 512) -> None:
    """PNG of the mean head from the front, with its landmarks where it has them."""
    distance, focal = 1.0, 2.6 * size
    K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)
    middle = (head.v_template.max(0).values + head.v_template.min(0).values) / 2
    facing = torch.tensor([1.0, -1.0, -1.0])
    vertices = (head.v_template - middle)[None] * facing + torch.tensor([0.0, 0.0, distance])
    shading, mask = drawing.shaded(head, vertices, K, (size, size))
    image = np.ascontiguousarray((np.where(mask[..., None], shading, 1.0) * 255).round().astype(np.uint8))
    if head.landmark_faces is not None:
        points = head.landmarks(vertices)[0] @ torch.from_numpy(K).T
        drawing.dot(image, (points[:, :2] / points[:, 2:]).numpy(), drawing.RED, radius=2)
    write_png(path, image)
