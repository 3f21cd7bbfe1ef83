"""Real clips and photographs through `prep-faces landmarks` and `flame-encoder track --photometric`: a table, sheets.

    python bench/clips.py OUT CLIP.mp4 ... [--photos FOLDER] [--seconds 8]

The independent witness is dlib's 68 points, another network trained on other people: how far the fitted head's own
points lie from them, on every tenth frame where dlib finds a face near the head, in % of the distance between the
outer eye corners. dlib itself goes wrong on turned heads, so frames are split by yaw. OUT gets a sheet of each clip.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import recon4d.head as heads
import torch
from flame_encoder import drawing
from flame_encoder.frames import frame_paths
from flame_encoder.tracker import clip as tracking
from flame_encoder.tracker import overlays
from prep_faces.dlib_faces import find_faces
from prep_faces.landmarks import write_landmarks
from prep_faces.video import extract_frames
from recon4d import images, landmarker
from recon4d.formats.landmarks import to_ibug
from recon4d.formats.track import Track

EYES = (36, 45)  # outer corners of the eyes among iBUG's 68 points


def yaws(track: Track) -> np.ndarray:
    """(N,) degrees from facing the camera, positive to the person's left."""
    R = track.R @ np.diag([1.0, -1.0, -1.0])
    answer: np.ndarray = np.degrees(np.arctan2(R[:, 0, 2], R[:, 2, 2]))
    return answer


def beside_dlib(head: heads.HeadModel, track: Track, frames: list[Path]) -> list[tuple[float, float]]:
    """Yaw and mean distance of the head's points from dlib's, % of the eye distance, of every tenth frame."""
    found, turned = [], yaws(track)
    for i in range(0, len(track), 10):
        if not track.valid[i]:
            continue
        points = head.landmarks(track.vertices(head, np.array([i])))[0] @ torch.from_numpy(track.K).T
        pixels = (points[:, :2] / points[:, 2:]).numpy()
        unit = float(np.linalg.norm(pixels[EYES[0]] - pixels[EYES[1]]))
        seen = find_faces(images.read(frames[i])).landmarks
        if seen is None or not len(seen):
            continue
        errors = [float(np.linalg.norm((face - pixels)[17:], axis=1).mean()) / unit for face in seen]
        if min(errors) < 0.5:  # otherwise it has found something else
            found.append((abs(float(turned[i])), 100 * min(errors)))
    return found


def clip_row(video: Path, out: Path, head: heads.HeadModel, seconds: float) -> dict:
    folder = out / video.stem
    fps = extract_frames(video, folder, max_frames=1, force=True)["fps"]
    extract_frames(video, folder, max_frames=round(seconds * fps), force=True)
    write_landmarks([folder / "frames"], folder, force=True)
    found = tracking.track(
        folder / "frames", folder / "landmarks", folder / "track", photometric=True, preview=False, force=True
    )
    track, figures = found
    frames = frame_paths(folder / "frames")
    witness = beside_dlib(head, track, frames)
    chosen = np.unique(np.linspace(0, len(track) - 1, 6).round().astype(int))
    chosen = np.unique([*chosen, int(yaws(track).argmin()), int(yaws(track).argmax())])
    seen = np.full((len(track), 68, 2), np.nan)
    drawing.contact_sheet(
        out / f"{video.stem}.png", list(overlays.overlays(head, track, folder / "frames", seen, chosen))
    )
    front, side = ([e for yaw, e in witness if (yaw < 20) == facing] for facing in (True, False))
    return {
        "clip": video.stem,
        "frames": len(track),
        "found": int(len(track) - figures["interpolated"] + figures["doubted"]),
        "trusted": int(track.valid.sum()),
        "yaw": f"{yaws(track).min():.0f} to {yaws(track).max():.0f}",
        "own error, %": round(figures["mean_iod"], 2),
        "from dlib under 20 degrees, %": round(float(np.median(front)), 1) if front else None,
        "beyond, %": round(float(np.median(side)), 1) if side else None,
        "drawn and seen": round(figures["photometric_error"][-1], 4),
        "jitter, mm": round(figures["jitter_mm"], 2),
    }


def photo_rows(folder: Path, out: Path) -> dict:
    """How many photographs show a face, and how far dlib's points are from ours there."""
    errors, found, sheet, files = [], 0, [], sorted(path for path in folder.iterdir() if path.suffix != ".tsv")
    for path in files:
        picture = images.read(path)[..., :3].copy()
        face = next(iter(landmarker.find(picture)), None)
        if face is not None:
            found += 1
            pixels = to_ibug(face.points[None])[0]
            unit = float(np.linalg.norm(pixels[EYES[0]] - pixels[EYES[1]]))
            seen = find_faces(picture).landmarks
            each = [float(np.linalg.norm((other - pixels)[17:], axis=1).mean()) / unit for other in seen]
            errors += [100 * min(each)] if each and min(each) < 0.5 else []
            drawing.dot(picture, face.points[:, :2], drawing.GREEN, max(1.0, unit / 60))
        sheet.append(cv2.resize(picture, (320, 320), interpolation=cv2.INTER_AREA))
    drawing.contact_sheet(out / "photos.png", sheet, columns=6)
    middle = round(float(np.median(errors)), 1)
    return {"photographs": len(files), "found": found, "dlib finds too": len(errors), "from dlib, %": middle}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seconds", type=float, default=8, help="of each clip, from its start")
    options = parser.parse_args()
    head = heads.load()
    options.out.mkdir(parents=True, exist_ok=True)
    for video in options.clips:
        print(json.dumps(clip_row(video, options.out, head, options.seconds)), flush=True)
    if options.photos is not None:
        print(json.dumps(photo_rows(options.photos, options.out)))


if __name__ == "__main__":
    main()
