"""Live Link Face's CSV: ARKit's 52 activations, head and gaze of each frame. Described in docs/formats.md."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from recon4d.files import InputError, write_text
from recon4d.formats.track import Track
from recon4d.head import HeadModel

# In the order of the file's columns, which write them with a capital letter.
NAMES = (
    *("eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft"),
    *("eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight"),
    *("eyeSquintRight", "eyeWideRight", "jawForward", "jawRight", "jawLeft", "jawOpen", "mouthClose", "mouthFunnel"),
    *("mouthPucker", "mouthRight", "mouthLeft", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft"),
    *("mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight"),
    *("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft"),
    *("browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft"),
    *("cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)
TURNS = ("Head", "LeftEye", "RightEye")
ANGLES = tuple(f"{part}{axis}" for part in TURNS for axis in ("Yaw", "Pitch", "Roll"))
JAW = ("jawForward", "jawLeft", "jawOpen", "jawRight")
FULL_LOOK = 0.5  # radians of an eye's turn at which eyeLook* is 1


@dataclass(frozen=True, eq=False)
class Activations:
    """N frames of a face.

    fps: frames per second. values: (N, 52) float32, of 1, in the order of `NAMES`. turns: (N, 3, 3) radians: yaw,
    pitch and roll of head, left eye and right eye, each to be applied as Ry(yaw) Rx(pitch) Rz(roll). Axes are x to the
    person's left, y up, z out of the face: a positive yaw looks to the person's left, a positive pitch down. The head
    turns in the camera's frame, an eye in the head's.
    """

    fps: float
    values: np.ndarray
    turns: np.ndarray


def write(path: str | Path, frames: Activations) -> None:
    """Write the CSV, with time codes from zero."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["Timecode", "BlendshapeCount", *(name[0].upper() + name[1:] for name in NAMES), *ANGLES])
    rate = max(1, round(frames.fps))
    for i, row in enumerate(np.concatenate([frames.values, frames.turns.reshape(-1, 9)], 1)):
        seconds, frame = divmod(i * rate / frames.fps, rate)
        clock = f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
        table.writerow([f"{clock}:{frame:06.3f}", len(NAMES) + len(ANGLES), *(f"{value:.8f}" for value in row)])
    write_text(path, text.getvalue())


def of_track(track: Track, head: HeadModel) -> Activations:
    """A track's expressions, jaw, gaze and pose as ARKit says them.

    The jaw joint's turns become the activations that move the face the same way, by least squares over the vertices.

    Raises:
        InputError: a head model whose expressions have no names of ARKit.
    """
    names = head.expression_names or ()
    if not set(names) & set(NAMES):
        raise InputError(
            f"the expressions of {track.head_model} have no names of ARKit; track with the open head to write them"
        )
    values = np.zeros((len(track), len(NAMES)), np.float32)
    for column, name in enumerate(names):
        if name in NAMES:
            values[:, NAMES.index(name)] = track.expression[:, column]
    for name, share in zip(JAW, _jaw_shares(track, head).T):
        values[:, NAMES.index(name)] += share
    values[:, [NAMES.index("eyeBlinkLeft"), NAMES.index("eyeBlinkRight")]] += track.eyelids
    flip = torch.tensor([1.0, -1.0, -1.0])  # from OpenCV's axes to a camera that looks back along z, y up
    pose = flip[:, None] * torch.from_numpy(track.R)
    eyes = torch.from_numpy(track.eyes)
    turns = torch.stack([_angles(pose), _angles(eyes[:, 0]), _angles(eyes[:, 1])], 1).numpy()
    for side, eye, inwards in (("Left", 1, -1), ("Right", 2, 1)):
        looks = {"In": inwards * turns[:, eye, 0], "Out": -inwards * turns[:, eye, 0]}
        looks |= {"Down": turns[:, eye, 1], "Up": -turns[:, eye, 1]}
        for way, angle in looks.items():
            values[:, NAMES.index(f"eyeLook{way}{side}")] = angle / FULL_LOOK
    return Activations(track.fps, values.clip(0, 1), turns)


def _angles(R: Tensor) -> Tensor:
    """(N, 3) yaw, pitch and roll of rotations (N, 3, 3), Ry Rx Rz."""
    found: Tensor = roma.rotmat_to_euler("YXZ", R)
    return found


def _jaw_shares(track: Track, head: HeadModel) -> np.ndarray:
    """(N, 4) activations of `JAW` that move the mean face most like the jaw joint's turns."""
    names = head.expression_names or ()
    present = [name for name in JAW if name in names]
    shares = np.zeros((len(track), len(JAW)), np.float32)
    if present:
        basis = head.expressiondirs[:, :, [names.index(name) for name in present]].flatten(0, 1)
        jaw = torch.from_numpy(np.asarray(track.jaw, np.float32))
        for start in range(0, len(track), 64):
            moved = (head(jaw=jaw[start : start + 64]) - head()).flatten(1)
            found = torch.linalg.lstsq(basis, moved.T).solution.T
            shares[start : start + 64, [JAW.index(name) for name in present]] = found.numpy()
    return shares


def read(path: str | Path) -> Activations:
    """Read such a CSV: any case and order of the columns; those of the angles may be missing.

    The frame rate is that of the time codes (hours:minutes:seconds:frames), 60 where they do not say.

    Raises:
        InputError: a missing or broken file, or one without ARKit's names.
    """
    try:
        rows = list(csv.reader(io.StringIO(Path(path).read_bytes().decode("utf-8-sig"))))
        head = {name.strip().lower(): column for column, name in enumerate(rows[0])}
        columns = [head[name.lower()] for name in NAMES if name.lower() in head]
        there = [i for i, name in enumerate(NAMES) if name.lower() in head]
        body = [row for row in rows[1:] if row]
        values = np.zeros((len(body), len(NAMES)), np.float32)
        values[:, there] = [[float(row[column]) for column in columns] for row in body]
        turns = np.zeros((len(body), len(ANGLES)), np.float32)
        turned = [i for i, name in enumerate(ANGLES) if name.lower() in head]
        turns[:, turned] = [[float(row[head[ANGLES[i].lower()]]) for i in turned] for row in body]
        fps = _rate([row[head["timecode"]] for row in body]) if "timecode" in head else 60.0
        fine = len(there) > 0 and len(body) > 0 and np.isfinite(values).all() and np.isfinite(turns).all()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a CSV of Live Link Face") from error
    except (csv.Error, ValueError, IndexError, OverflowError):
        fine = False
    if not fine:
        raise InputError(f"{path} is not a CSV of Live Link Face with ARKit's names and numbers; record it again")
    return Activations(fps, values, turns.reshape(-1, 3, 3))


def _rate(codes: list[str]) -> float:
    """Frames per second of time codes, by how many there are in their whole seconds; 60 where that can't be told."""
    seconds = [code.rpartition(":")[0] for code in codes]
    counts = [seconds.count(second) for second in dict.fromkeys(seconds)][1:-1]
    return float(np.median(counts)) if counts else 60.0
