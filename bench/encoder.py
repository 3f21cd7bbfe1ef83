"""How good an encoder is: on drawn people it has not seen, and on photographs against a landmark detector.

    python bench/encoder.py                                       # the shipped encoder, 200 people
    python bench/encoder.py --encoder outputs/eidolon_encoder_final.pth --photos photos --sheet sheet.png

Prints one JSON object. `raw` is the network alone, `refined` the solver after it, `raw_5` and `refined_5` with five
pictures of each person; `mean` is the mean head, skin and light in their stead.

`aligned_mm`: vertices of the whole posed head after the best rigid motion, mean; `face_mm`: of the face alone after its
own; `identity_mm`: of the whole head without pose and expression. `landmarks_percent`: of the distance between the
outer eye corners. `albedo`: mean difference of the face's sRGB colours, of 255. `light_percent`: difference of the
irradiance on what faces the camera, of its mean.
`spread`: standard deviations of these from person to person.
`rank`: how often the right one of 100 people, known from one other picture (`_5`: from five), is among the likeliest,
by the network's answers; `solved.rank` by the second stage's, of so many people as had two pictures refined.

Pictures are drawn at twice the size that the network sees, and the landmarker looks at those; `small` is the measure of
earlier versions, whose pictures had the network's size: the network alone, without points.

`--keep FOLDER` keeps the drawn people and every refined picture, so that a run that was stopped goes on: of one version
of the program, as nothing is computed twice.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import encoder_photographs
import numpy as np
import roma
import torch
from flame_encoder.encoder import (
    encodings,
    face_boxes,
    identity,
    overlays,
    rendering,
    samples,
    skin,
    synthetic,
    trained,
    vector,
)
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.face_boxes import Where, box_around
from flame_encoder.encoder.trained import Encoder
from flame_encoder.people import comparing, photographs, second_stage
from flame_encoder.people.comparing import Someone
from flame_encoder.people.second_stage import Read
from recon4d import mesh
from recon4d.head import with_uv
from torch import Tensor

UNSEEN = 987_654_321  # a seed that no training uses
PICTURES = 5  # of each person
RANKS = (1, 2, 5, 10, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--crowd", type=int, default=100, help="people of whom one is to be picked")
    parser.add_argument("--photos", type=Path, help="a folder of photographs")
    parser.add_argument("--sheet", type=Path, help="PNG: each photograph, the network's head, the refined head")
    parser.add_argument("--solved", type=int, help="people whose pictures are refined, too  [all]")
    parser.add_argument("--solved-5", type=int, help="people of whom five pictures are, together  [all]")
    parser.add_argument("--ranked", type=int, default=100, help="people whose second picture is refined, too")
    parser.add_argument("--keep", type=Path, help="folder that keeps people and refined pictures for the next run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = trained.load(options.encoder)
    found: dict = {"encoder": str(options.encoder or "shipped"), "backbone": encoder.backbone}
    if options.people:
        batch, pictures = kept(encoder, max(options.people, options.crowd), options.keep)
        answers = answers_of(encoder, batch, options.keep)
        found |= of_people(encoder, batch, answers, options.crowd)
        counts = options.solved, options.solved_5, options.ranked
        found |= of_solved(encoder, batch, answers, pictures, *counts, options.keep)
        found["small"] = of_small(encoder, options.people)
    if options.photos:
        found["photographs"] = encoder_photographs.measured(encoder, options.photos, options.sheet)
    print(json.dumps(found, indent=2))


def drawn(encoder: Encoder, people: int, pictures: int, look: int = synthetic.LOOK) -> tuple[samples.Batch, np.ndarray]:
    """`pictures` of each of `people`, those of one after another; and the pictures as they were drawn."""
    scene = synthetic.scene(with_uv(encoder.head), encoder.layout, encoder.view, look)
    made = [synthetic.sample(scene, UNSEEN, i, who=i // pictures) for i in range(people * pictures)]
    items = [samples.Item(s.image, s.landmarks, s.vector, True, s.points, i // pictures) for i, s in enumerate(made)]
    return samples.collate(items), np.stack([s.picture for s in made])


def kept(encoder: Encoder, people: int, folder: Path | None) -> tuple[samples.Batch, np.ndarray]:
    """`PICTURES` of each of `people`, from the file `people.npz` if it is there."""
    path = None if folder is None else folder / "people.npz"
    if path is not None and path.is_file():
        with np.load(path) as arrays:
            pictures = arrays["pictures"]
            return samples.Batch(**{k: torch.from_numpy(v) for k, v in arrays.items() if k != "pictures"}), pictures
    batch, pictures = drawn(encoder, people, PICTURES)
    # Faces that the landmarker overlooks are looked for as `encode` does.
    for row in np.flatnonzero(~np.isfinite(batch.points[:, 0, 0].numpy())):
        again = face_boxes.where(pictures[row], None, None).points
        if again is not None:
            batch.points[row] = torch.from_numpy(again).float() / synthetic.LOOK
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, pictures=pictures, **{name: value.numpy() for name, value in vars(batch).items()})
    return batch, pictures


def encoded(
    encoder: Encoder, batch: samples.Batch, answers: Tensor, rows: list[int], look: int = synthetic.LOOK
) -> tuple[Encoding, list[Where]]:
    """The network's answers to some pictures, as `photographs.look` gives them for files `look` times as large."""
    size = encoder.view.size * look
    faces = []
    for points in batch.points[rows].numpy() * look:
        there = bool(np.isfinite(points).all())
        box = box_around(points) if there else np.array([0, 0, size, size], np.float32)
        faces.append(Where(box, points.astype(float) if there else None, there))
    crops = torch.tensor([[0, 0, size]]).repeat(len(rows), 1)
    sizes = [(size, size)] * len(rows)
    return photographs.as_encoding(encoder, [str(i) for i in rows], sizes, answers[rows], crops, faces), faces


def of_people(encoder: Encoder, batch: samples.Batch, answers: Tensor, crowd: int) -> dict:
    """What drawn people say of the network."""
    people = len(batch.vectors) // PICTURES
    first = list(range(0, PICTURES * people, PICTURES))
    truth = batch.vectors[first]
    raw, _ = encoded(encoder, batch, answers, first)
    found: dict = {"people": people, "faces_found": round(float(raw.found.mean()), 3)}
    found["mean"] = figures(encoder, average(encoder, batch, first), truth)
    found["raw"] = figures(encoder, torch.from_numpy(raw.vectors), truth) | landmarks(encoder, raw, batch, first)
    found["raw_5"] = figures(encoder, of_groups(encoder, batch, answers, people, None), truth)
    if encoder.measured is not None:
        told = vector.identity_of(encoder.layout, answers).double().numpy()
        told = told.reshape(people, PICTURES, -1)[:crowd]
        found["rank"] = ranks(encoder, told[:, :1], told[:, 1:2])
        found["rank_5"] = ranks(encoder, told[:, 1:], told[:, :1])
    times = []
    for image, points in zip(batch.images[:50], batch.points[:50]):
        begun = time.perf_counter()
        with torch.no_grad():
            encoder.network(image[None], points[None])
        times.append(time.perf_counter() - begun)
    return found | {"ms_per_picture": round(1000 * float(np.median(times)), 2)}


def average(encoder: Encoder, batch: samples.Batch, rows: list[int]) -> Tensor:
    """The mean head from the front, with the mean light and skin of other pictures."""
    rest = torch.zeros_like(batch.vectors[rows])
    start = encoder.layout.shape + encoder.layout.expression
    rest[:, start : start + 6] = torch.tensor(vector.IDENTITY_6D)
    rest[:, -encoder.layout.detail :] = batch.vectors[1::PICTURES, -encoder.layout.detail :].mean(0)
    return rest


def refined(encoder: Encoder, raw: Encoding, faces: list[Where], read: Read | None, keep: Path | None) -> Encoding:
    """The second stage, a picture (or one person) at a time, each kept in a file; without `read` on points alone."""
    groups = [list(range(len(faces)))] if raw.person else [[i] for i in range(len(faces))]
    done = []
    for rows in groups:
        name = raw.names[rows[0]] + ("_person" if raw.person else "") + ("_points" if read is None else "")
        path = None if keep is None else keep / f"{name}.npz"
        if path is not None and path.is_file():
            done.append(encodings.read(path))
            continue
        begun, some = time.process_time(), [faces[i] for i in rows]
        reads = None if read is None else lambda k, rows=rows, read=read: read(rows[k])
        done.append(second_stage.refined(encoder, raw.some(rows), some, reads))
        if path is not None:
            done[-1].write(path)
        print(f"{name}: {time.process_time() - begun:.2f} s of processor time", file=sys.stderr, flush=True)
    own = ("names", "image_sizes", "vectors", "crops", "found", "refined", "raw", "focals", "identity_sigma")
    arrays = {name: np.concatenate([getattr(one, name) for one in done]) for name in own}
    nothing = np.zeros((identity.AXES, encoder.layout.shape + encoder.layout.skin + 1), np.float32)
    told = [
        nothing.repeat(len(one.names), 0).reshape(-1, *nothing.shape) if one.told is None else one.told for one in done
    ]
    return replace(done[0], identity=None, told=np.concatenate(told), **arrays)


def of_solved(
    encoder: Encoder,
    batch: samples.Batch,
    answers: Tensor,
    pictures: np.ndarray,
    one: int | None,
    five: int | None,
    ranked: int,
    keep: Path | None,
) -> dict:
    """What they say of the second stage, of the first so many people; and of the network on the same people."""
    people = len(batch.vectors) // PICTURES
    found: dict = {}
    first = list(range(0, PICTURES * people, PICTURES))[:one]
    if first:
        truth = batch.vectors[first]
        raw, faces = encoded(encoder, batch, answers, first)
        points = refined(encoder, raw, faces, None, keep)
        done = refined(encoder, raw, faces, lambda k: pictures[first[k]], keep)
        for name, each in (("raw", raw), ("points", points), ("refined", done)):
            vectors = torch.from_numpy(each.vectors)
            found[name] = figures(encoder, vectors, truth) | landmarks(encoder, each, batch, first)
        found["mean"] = figures(encoder, average(encoder, batch, first), truth)
        print(json.dumps(found), file=sys.stderr, flush=True)
        again = [row + 1 for row in first[:ranked]]
        if len(again) > 1:
            raw, faces = encoded(encoder, batch, answers, again)
            probes = refined(encoder, raw, faces, lambda k: pictures[again[k]], keep)
            found["rank"] = known_ranks(encoder, done, probes)
            print(json.dumps(found), file=sys.stderr, flush=True)
    count = people if five is None else min(five, people)
    if count:
        truth = batch.vectors[first[:count]]
        for name, drawings in (("raw_5", None), ("refined_5", pictures)):
            found[name] = figures(encoder, of_groups(encoder, batch, answers, count, drawings, keep), truth)
    return {"solved": {"people": len(first), "people_5": count} | found}


def of_groups(
    encoder: Encoder,
    batch: samples.Batch,
    answers: Tensor,
    people: int,
    pictures: np.ndarray | None,
    keep: Path | None = None,
) -> Tensor:
    """The vectors of the first picture of each person, of an identity from all of their pictures."""
    found = []
    for k in range(people):
        rows = list(range(PICTURES * k, PICTURES * (k + 1)))
        raw, faces = encoded(encoder, batch, answers, rows)
        one = photographs.of_one_person(encoder, raw) if raw.found.any() else raw
        if pictures is not None:
            one = refined(encoder, one, faces, lambda i, rows=rows: pictures[rows[i]], keep)
        found.append(torch.from_numpy(one.vectors[:1]))
    return torch.cat(found)


def answers_of(encoder: Encoder, batch: samples.Batch, keep: Path | None) -> Tensor:
    """The network's answers to all pictures."""
    path = None if keep is None else keep / f"answers_{encoder.digest}.npy"
    if path is not None and path.is_file():
        return torch.from_numpy(np.load(path))
    with torch.no_grad():
        parts = [encoder.network(a, b) for a, b in zip(batch.images.split(64), batch.points.split(64))]
    answers = torch.cat(parts)
    if path is not None:
        np.save(path, answers.numpy())
    return answers


def figures(encoder: Encoder, vectors: Tensor, truth: Tensor) -> dict[str, Any]:
    """Errors of vectors (N, size), means and standard deviations over N: see the module."""
    head, layout = encoder.head, encoder.layout
    posed, near, same, albedo, light = [], [], [], [], []
    assert head.regions is not None
    region = head.regions["face"]
    small = rendering.reduced(with_uv(head), 64)
    face = texels(small)
    directions = np.random.default_rng(0).standard_normal((256, 3))
    directions[:, 2] = np.abs(directions[:, 2])
    towards = torch.from_numpy(directions / np.linalg.norm(directions, axis=1, keepdims=True)).float()
    for mine, goal in zip(vectors, truth):
        ours, theirs = (layout.split(one[None]) for one in (mine, goal))
        both = [rendering.turned(head, one)[0] for one in (ours, theirs)]
        posed.append(after_alignment(*both))
        near.append(after_alignment(*(vertices[region] for vertices in both)))
        same.append(after_alignment(*(head(one["shape"][:, : head.n_shape])[0] for one in (ours, theirs))))
        albedo.append((vector.albedo(small, ours) - vector.albedo(small, theirs))[0][face].abs().mean())
        shine, true = (mesh.sh_irradiance(towards, vector.light(one)[0]) for one in (ours, theirs))
        light.append((shine - true).abs().mean() / true.mean())
    errors = {
        "aligned_mm": 1000 * torch.stack(posed),
        "face_mm": 1000 * torch.stack(near),
        "identity_mm": 1000 * torch.stack(same),
        "albedo": 255 * torch.stack(albedo),
        "light_percent": 100 * torch.stack(light),
    }
    spread = {name: round(float(each.std(correction=min(len(each) - 1, 1))), 2) for name, each in errors.items()}
    return {name: round(float(each.mean()), 2) for name, each in errors.items()} | {"spread": spread}


def texels(head) -> Tensor:
    """(T, T) bool: texels of the face."""
    baked = mesh.bake_uv(head.vt, head.ft, head.albedo_mean.shape[:2])
    answer: Tensor = baked.mask & skin.face(head)[baked.tri_id.long().clamp_min(0)]
    return answer


def after_alignment(points: Tensor, goal: Tensor) -> Tensor:
    R, t = roma.rigid_points_registration(points, goal)
    return (points @ R.T + t - goal).norm(dim=-1).mean()


def landmarks(encoder: Encoder, found: Encoding, batch: samples.Batch, rows: list[int]) -> dict[str, float]:
    """The 68 landmarks of encoded heads against the true ones."""
    error = []
    for k, i in enumerate(rows):
        truth = batch.landmarks[i] * (int(found.image_sizes[k][0]) / encoder.view.size)
        unit = (truth[36] - truth[45]).norm()
        error.append(100 * (overlays.landmarks(encoder.head, found, k) - truth).norm(dim=-1).mean() / unit)
    return {"landmarks_percent": round(float(torch.stack(error).mean()), 2)}


def ranks(encoder: Encoder, gallery: np.ndarray, probes: np.ndarray) -> dict[str, float]:
    """How often person k of probes (P, n, I) is among the first of a gallery (P, m, I), per cent."""
    assert encoder.measured is not None
    score = identity.scorer(encoder.measured, probes.shape[1], gallery.shape[1])
    likeness = np.array([[score(probe, known) for known in gallery] for probe in probes])
    return curve(likeness)


def curve(likeness: np.ndarray) -> dict[str, float]:
    """How often the own one is among the first, per cent, of likenesses (P, P); and what is said beyond doubt."""
    place = (likeness > np.diag(likeness)[:, None]).sum(1)
    others = ~np.eye(len(likeness), dtype=bool)
    found = {str(rank): round(100 * float((place < rank).mean()), 1) for rank in RANKS} | {"people": len(likeness)}
    for name, which in (("same", ~others), ("others", others)):
        found[f"{name}_said_same"] = round(100 * float((likeness[which] > comparing.SURE).mean()), 1)
        found[f"{name}_said_different"] = round(100 * float((likeness[which] < -comparing.SURE).mean()), 1)
    return found


def known_ranks(encoder: Encoder, gallery: Encoding, probes: Encoding) -> dict[str, float]:
    """`ranks` by what the second stage knows of a picture of each person and of one more of the first of them."""
    measured = encoder.measured
    assert measured is not None
    sides = []
    for found in (gallery, probes):
        assert found.told is not None
        answers = vector.identity_of(found.layout, torch.from_numpy(found.raw)).double().numpy()[: len(probes.names)]
        told = [(answer, rows.astype(float)) if rows.any() else None for answer, rows in zip(answers, found.told)]
        sides.append([Someone("", answer[None], known) for answer, known in zip(answers, told)])
    return curve(np.array([[comparing.alike(measured, probe, one) for one in sides[0]] for probe in sides[1]]))


def of_small(encoder: Encoder, people: int) -> dict[str, float]:
    """The measure of earlier versions."""
    batch, _ = drawn(encoder, people, 1, look=1)
    with torch.no_grad():
        vectors = torch.cat([encoder.network(images) for images in batch.images.split(64)])
    rest = torch.zeros_like(vectors)
    start = encoder.layout.shape + encoder.layout.expression
    rest[:, start : start + 6] = torch.tensor(vector.IDENTITY_6D)
    mine, mean = (figures(encoder, one, batch.vectors) for one in (vectors, rest))
    unseen = replace(batch, points=batch.points * torch.nan)
    raw, _ = encoded(encoder, unseen, vectors, list(range(people)), look=1)
    error = landmarks(encoder, raw, batch, list(range(people)))
    return {"aligned_mm": mine["aligned_mm"], "mean_head_mm": mean["aligned_mm"]} | error


if __name__ == "__main__":
    main()
