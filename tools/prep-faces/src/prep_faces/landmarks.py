"""The 68 or 478 points of one person in each image of a sequence or a heap of photos."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recon4d import InputError
from recon4d.files import write_npy
from recon4d.landmarker import BLENDSHAPES
from recon4d.parallel import cores
from recon4d.records import Record, Watch, counts, numbers, record, run, unwatched, up_to_date
from recon4d.runs import Claim

from prep_faces.detection import Found, detect_files
from prep_faces.detectors import prepare
from prep_faces.faces import Faces
from prep_faces.following import MEMORY, follow_files
from prep_faces.image_files import ImageFile, clashes, find_images

SURE = 0.0  # dlib score of a face that stands by itself
FAINT = -0.6  # dlib score that is believed where the frame before had a face


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


def choose_face(
    faces: Faces, previous: np.ndarray | None, sure: float, detector: str = "dlib", largest: bool = False
) -> int | None:
    """Which face of a frame is the person: the one nearest to the box of the frame before, else the likeliest.

    `previous` is that box (4,) or None; faces with a score under `sure` count only where they overlap it.
    """
    if not len(faces.boxes):
        return None
    if previous is not None:
        overlaps = [overlap(box, previous) for box in faces.boxes]
        best = int(np.argmax(overlaps))
        if overlaps[best] > 0.3:
            return best
    areas = _likely_areas(faces, sure, detector, largest)
    return int(np.argmax(areas)) if areas.max() > 0 else None


def _likely_areas(faces: Faces, sure: float, detector: str, largest: bool) -> np.ndarray:
    """(N,) pixels of each face that may be the person, 0 for the others: those much less sure than the surest.

    Among real faces a score says little, so the largest is taken of those that are about as sure.
    """
    best = float(faces.scores.max(initial=0))
    least = sure if largest else max(sure, best * (0.5 if detector == "dlib" else 0.9))  # probabilities saturate
    areas: np.ndarray = np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1) * (faces.scores >= least)
    return areas


def write_landmarks(
    paths: Sequence[str | Path],
    out: str | Path,
    detector: str = "mediapipe",
    device: str = "cpu",
    photos: bool = False,
    points: str | None = None,
    largest: bool = False,
    turned: bool = False,
    batch: int = 8,
    workers: int | None = None,
    engine: str = "local",
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Write out/landmarks/<name>.npy for each image, float32 pixels, and out/landmarks.jsonl.

    `points`: `dense` are MediaPipe's (478, 3) with depth (the default of that detector), `ibug` (68, 2) (that of the
    others), `3d` (68, 3) with the depth that face-alignment gives, scaled to pixels. With mediapipe the records have
    `blendshapes`, 52 activations by their names, `to_crop`, and `hidden`, the dense points that face away. In a
    sequence (the default) the same person is followed from file to file; `photos` treats each on its own. Of several
    faces the likeliest is taken, or the `largest`; `turned` looks in four orientations, in each file anew. Points
    that are up to date are kept. Detector, batch, workers, engine: see detection.detect_files. Returns a summary;
    files that fail are recorded, not raised. Raises InputError when there is no image, or `out` holds a run with
    other options.
    """
    out = Path(out)
    files = find_images(paths)
    points = points or ("dense" if detector == "mediapipe" else "ibug")
    prepare(detector, device, points)
    options = _options(detector, points, photos, largest, turned)
    with run(out, "prep-faces landmarks", options, ["landmarks"], inputs=paths, force=force) as claimed:
        how: dict[str, Any] = {"detector": detector, "device": device, "engine": engine}
        how |= {"batch": batch, "workers": workers}
        what: dict[str, Any] = {"photos": photos, "points": points, "largest": largest, "turned": turned}
        result = record_landmarks(claimed, files, **what, **how, watch=watch)
    return {**result, "out": str(out / "landmarks")}


def record_landmarks(
    claimed: Claim,
    files: list[ImageFile],
    detector: str = "mediapipe",
    device: str = "cpu",
    photos: bool = False,
    points: str | None = None,
    largest: bool = False,
    turned: bool = False,
    batch: int = 8,
    workers: int | None = None,
    engine: str = "local",
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Landmarks of `files` in a folder that is claimed; otherwise as `write_landmarks`."""
    points = points or ("dense" if detector == "mediapipe" else "ibug")
    targets = [claimed.folder / "landmarks" / f"{file.name}.npy" for file in files]

    def work(known: dict[str, Record]) -> Iterator[Record]:
        clashing = clashes(files)
        fresh = [not up_to_date(known.get(file.file), target, [file.path]) for file, target in zip(files, targets)]
        todo = [file for file, is_fresh, clash in zip(files, fresh, clashing) if is_fresh and clash is None]
        threshold = None if detector != "dlib" else SURE if photos else FAINT
        if detector == "mediapipe" and not (photos or turned) and engine == "local":
            going = [
                (file, None if is_fresh else known[file.file])
                for file, is_fresh, clash in zip(files, fresh, clashing)
                if clash is None
            ]
            kept = [record for _, record in going]
            found = follow_files([file for file, _ in going], kept, points == "dense", min(workers or cores(), 4))
        else:
            answers = detect_files(todo, detector, device, threshold, points, batch, workers, engine, turned=turned)
            found = ((answer, None) for answer in answers)
        previous: np.ndarray | None = None
        lost = 0
        for file, target, is_fresh, clash in zip(files, targets, fresh, clashing):
            if clash is not None:
                item: Record = {"file": file.file, "error": str(clash)}
            elif not is_fresh:
                item = known[file.file]
            else:
                answer, square = next(found)
                item = {"file": file.file, **_settle(answer, target, previous, detector, largest)}
                if square is not None:
                    item["next_square"] = [*square.centre, square.side, square.angle]
            yield item
            if photos:
                continue
            lost = lost + 1 if "error" in item else 0
            if "box" in item:
                previous = np.array(item["box"], np.float32)
            elif lost >= MEMORY:
                previous = None

    def summary(records: list[Record]) -> dict[str, Any]:
        return {**counts(records), "detector": detector, "close": sum("rivals" in item for item in records)}

    options = _options(detector, points, photos, largest, turned)
    return record(
        claimed,
        "landmarks",
        options,
        work,
        summary,
        whole=lambda item: numbers(item.get("box"), 4),
        total=len(files),
        watch=watch,
    )


def _options(detector: str, points: str, photos: bool, largest: bool, turned: bool) -> dict[str, Any]:
    rare = {"faces": "largest"} if largest else {}
    return {"detector": detector, "points": points, "photos": photos, **rare, **({"turned": True} if turned else {})}


def _settle(
    answer: Found,
    target: Path,
    previous: np.ndarray | None,
    detector: str,
    largest: bool,
) -> dict[str, Any]:
    if isinstance(answer, InputError):
        target.unlink(missing_ok=True)
        return {"detector": detector, "error": str(answer)}
    (height, width), faces = answer
    size = {"width": width, "height": height, "detector": detector}
    chosen = choose_face(faces, previous, SURE, detector, largest)
    if chosen is None or faces.landmarks is None:
        target.unlink(missing_ok=True)  # of an earlier run
        return {**size, "error": "no face found"}
    write_npy(target, faces.landmarks[chosen].astype(np.float32))
    areas = _likely_areas(faces, SURE, detector, largest)
    rivals = int((areas > 0.7 * areas[chosen]).sum()) - 1 if areas[chosen] > 0 and previous is None else 0
    more: dict[str, Any] = {"rivals": rivals} if rivals else {}
    if faces.blendshapes is not None and faces.to_crop is not None and faces.hidden is not None:
        values = np.round(faces.blendshapes[chosen].astype(float), 4).tolist()
        more |= {
            "presence": round(float(faces.scores[chosen]), 4),
            "blendshapes": dict(zip(BLENDSHAPES, values, strict=True)),
            "to_crop": faces.to_crop[chosen].round(6).tolist(),
            "hidden": faces.hidden[chosen],
        }
    return {
        **size,
        **more,
        "score": round(float(faces.scores[chosen]), 4),
        "box": [round(float(value), 2) for value in faces.boxes[chosen]],
        "faces": int((faces.scores >= SURE).sum()),
    }
