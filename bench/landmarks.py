"""Our landmarker beside MediaPipe's own package and dlib, in one run on one thread each: frames per second, agreement.

    pip install --target PEER mediapipe
    python bench/landmarks.py VIDEO --photos FOLDER --peer PEER

MediaPipe's package gets the model file that recon4d ships. On the video both follow the face from frame to frame; each
photograph stands alone, and both take the likeliest face.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from prep_faces.detectors import detect
from prep_faces.image_files import find_images
from prep_faces.video import decode
from recon4d import InputError, images, landmarker, shipped

PEER = """
import json, sys, time
import cv2, numpy as np
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision
asset, folder = sys.argv[1], sys.argv[2]
def landmarker(mode):
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=asset), running_mode=mode, output_face_blendshapes=True
    )
    return vision.FaceLandmarker.create_from_options(options)
def points(found, image):
    if not found.face_landmarks:
        return None
    size = np.array([image.shape[1], image.shape[0]])
    return [[p.x * size[0], p.y * size[1]] for p in found.face_landmarks[0]]
out = {}
for kind in ("video", "photos"):
    pictures = [np.ascontiguousarray(x) for x in np.load(f"{folder}/{kind}.npz").values()]
    mode = vision.RunningMode.VIDEO if kind == "video" else vision.RunningMode.IMAGE
    found = []
    with landmarker(mode) as marker:
        for i, image in enumerate(pictures):
            if i == 10:
                begin, cpu = time.perf_counter(), time.process_time()
            picture = mp.Image(image_format=mp.ImageFormat.SRGB, data=image)
            result = marker.detect_for_video(picture, 33 * i) if kind == "video" else marker.detect(picture)
            found.append(points(result, image))
    rest = max(len(pictures) - 10, 1)
    seconds = [(time.perf_counter() - begin) / rest, (time.process_time() - cpu) / rest]
    out[kind] = {"found": found, "seconds": seconds}
json.dump(out, open(f"{folder}/out.json", "w"))
"""


def timed(work, pictures: list) -> tuple[list, list[float]]:
    """What `work` finds in each picture, and the seconds and CPU seconds of one after the first ten."""
    found = []
    for i, picture in enumerate(pictures):
        if i == 10:
            begin, cpu = time.perf_counter(), time.process_time()
        found.append(work(picture))
    rest = max(len(pictures) - 10, 1)
    return found, [(time.perf_counter() - begin) / rest, (time.process_time() - cpu) / rest]


def follower():
    """Points (478, 2) of one picture after another, as `landmarks` follows a face through a clip."""
    state = {"square": None, "lost": 0}

    def work(picture: np.ndarray) -> np.ndarray | None:
        face = landmarker.follow(picture, state["square"], state["lost"])
        state["lost"] = 0 if face is not None else state["lost"] + 1
        if face is None:
            return None
        state["square"] = face.next_square()
        _ = face.blendshapes
        return face.points[:, :2]

    return work


def alone(picture: np.ndarray) -> np.ndarray | None:
    """The likeliest face of one picture."""
    found = landmarker.find(picture)
    return found[0].points[:, :2] if found else None


def once(picture: np.ndarray) -> np.ndarray | None:
    """The same without the second look, in the square that the points give: MediaPipe's package looks once."""
    boxes, _, six = landmarker.detect(picture)
    if not len(boxes):
        return None
    face = landmarker.landmarks(picture, landmarker.square_of(boxes[0].reshape(2, 2), six[0, :2]))
    return face.points[:, :2] if face.presence >= landmarker.PRESENT else None


def peer(folder: Path, site: Path) -> dict:
    """What MediaPipe's package finds, in a process of its own with that folder first on its path."""
    asset = folder / landmarker.ASSET
    asset.write_bytes(shipped.read("recon4d", landmarker.ASSET, landmarker.SHA256, landmarker.INSTEAD))
    words = [sys.executable, "-c", PEER, str(asset), str(folder)]
    subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": str(site)}, stderr=subprocess.DEVNULL)
    return json.loads((folder / "out.json").read_text())


def apart(ours: list, theirs: list) -> dict:
    """Distances in pixels between the points that both found, of frames that show the same face."""
    both = [(np.array(a), np.array(b)) for a, b in zip(ours, theirs) if a is not None and b is not None]
    each = [float(np.linalg.norm(a - b, axis=1).mean()) for a, b in both]
    iod = [float(np.linalg.norm(b[33] - b[263])) for _, b in both]
    same = [d for d, unit in zip(each, iod) if d < 0.5 * unit]
    return {
        "ours": sum(a is not None for a in ours),
        "theirs": sum(b is not None for b in theirs),
        "both": len(both),
        "another face": len(both) - len(same),
        "mean px": round(float(np.mean(same)), 3) if same else None,
        "median px": round(float(np.median(same)), 3) if same else None,
        "worst px": round(max(same), 3) if same else None,
        "mean % of the eye distance": round(100 * float(np.mean([d / u for d, u in zip(each, iod) if d < 0.5 * u])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--peer", type=Path, help="where MediaPipe's package is; without it only our own speed")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    frames = [image for _, image in decode(options.video)]
    photos = []
    for file in find_images([options.photos]):
        try:
            photos.append(images.read(file.path)[..., :3])
        except InputError as error:
            print(error, file=sys.stderr)
    report: dict = {}
    ours, video = timed(follower(), frames)
    own, still = timed(alone, photos)
    first = timed(once, photos)[0]
    dlib = timed(lambda picture: detect([picture], "dlib")[0], frames[:60])[1]
    speeds = {"ours, following": video, "ours, a photo": still, "dlib": dlib}
    if options.peer is not None:
        with tempfile.TemporaryDirectory() as folder:
            np.savez(f"{folder}/video.npz", *frames)
            np.savez(f"{folder}/photos.npz", *photos)
            found = peer(Path(folder), options.peer)
        for kind, mine in (("video", ours), ("photos", own), ("photos, one look", first)):
            report[f"agreement, {kind}"] = apart(mine, found[kind.split(",")[0]]["found"])
        speeds["MediaPipe's package, following"] = found["video"]["seconds"]
        speeds["MediaPipe's package, a photo"] = found["photos"]["seconds"]
    report["frames/s"] = {name: round(1 / wall, 1) for name, (wall, _) in speeds.items()}
    report["CPU ms a frame"] = {name: round(1e3 * cpu, 1) for name, (_, cpu) in speeds.items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
