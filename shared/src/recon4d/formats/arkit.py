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
JAW_ANGLES = ("JawYaw", "JawPitch", "JawRoll")  # ours, after those of the format
JAW = ("jawForward", "jawLeft", "jawOpen", "jawRight")
FULL_LOOK = 0.5  # radians of an eye's turn at which eyeLook* is 1


@dataclass(frozen=True, eq=False)
class Activations:
    """N frames of a face.

    fps: frames per second. values: (N, 52) float32, of 1, in the order of `NAMES`. turns: (N, 3, 3) radians: yaw,
    pitch and roll of head, left eye and right eye, each to be applied as Ry(yaw) Rx(pitch) Rz(roll). Axes are x to the
    person's left, y up, z out of the face: a positive yaw looks to the person's left, a positive pitch down. The head
    turns in the camera's frame, an eye in the head's. jaw: (N, 3) of the same for the jaw's joint of a track; None
    where a file has only activations.
    """

    fps: float
    values: np.ndarray
    turns: np.ndarray
    jaw: np.ndarray | None = None


def write(path: str | Path, frames: Activations) -> None:
    """Write the CSV, with time codes from zero; the jaw's joint, where it is known, in three columns more."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    more = () if frames.jaw is None else JAW_ANGLES
    table.writerow(["Timecode", "BlendshapeCount", *(name[0].upper() + name[1:] for name in NAMES), *ANGLES, *more])
    rate = max(1, round(frames.fps))
    columns = [frames.values, frames.turns.reshape(-1, 9), *([] if frames.jaw is None else [frames.jaw])]
    for i, row in enumerate(np.concatenate(columns, 1)):
        seconds, frame = divmod(i * rate / frames.fps, rate)
        clock = f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
        table.writerow([f"{clock}:{frame:06.3f}", len(NAMES) + len(ANGLES), *(f"{value:.8f}" for value in row)])
    write_text(path, text.getvalue())


def of_track(track: Track, head: HeadModel) -> Activations:
    """A track's expressions, jaw, gaze and pose as ARKit says them.

    The jaw joint's turns become the activations that move the face the same way, by least squares over the vertices;
    they are kept beside them too, since a track has both.

    Raises:
        InputError: a head model whose expressions have no names of ARKit.
    """
    names = _named(head, "track with the open head to write them")
    values = np.zeros((len(track), len(NAMES)), np.float32)
    for column, name in enumerate(names):
        if name in NAMES:
            values[:, NAMES.index(name)] = track.expression[:, column]
    for name, share in zip(JAW, _jaw_shares(track.jaw, head).T):
        values[:, NAMES.index(name)] += share
    values[:, [NAMES.index("eyeBlinkLeft"), NAMES.index("eyeBlinkRight")]] += track.eyelids
    flip = torch.tensor([1.0, -1.0, -1.0])  # from OpenCV's axes to a camera that looks back along z, y up
    pose = flip[:, None] * torch.from_numpy(track.R @ track.neck)
    eyes = torch.from_numpy(track.eyes)
    turns = torch.stack([_angles(pose), _angles(eyes[:, 0]), _angles(eyes[:, 1])], 1).numpy()
    for side, eye, inwards in (("Left", 1, -1), ("Right", 2, 1)):
        looks = {"In": inwards * turns[:, eye, 0], "Out": -inwards * turns[:, eye, 0]}
        looks |= {"Down": turns[:, eye, 1], "Up": -turns[:, eye, 1]}
        for way, angle in looks.items():
            values[:, NAMES.index(f"eyeLook{way}{side}")] = angle / FULL_LOOK
    return Activations(track.fps, values.clip(0, 1), turns, _angles(torch.from_numpy(track.jaw)).numpy())


def expressions(frames: Activations, head: HeadModel) -> np.ndarray:
    """Activations as a head model's expressions (N, E), by their names; those that ARKit lacks are zero.

    Raises:
        InputError: a head model whose expressions have no names of ARKit.
    """
    names = _named(head, "give parameters of that head model, or an avatar of the open head")
    found = np.zeros((len(frames.values), len(names)), np.float32)
    for column, name in enumerate(names):
        if name in NAMES:
            found[:, column] = frames.values[:, NAMES.index(name)]
    return found


def rotations(frames: Activations) -> np.ndarray:
    """Head, left eye and right eye as rotations (N, 3, 3, 3), axes as `Activations` has them.

    Eyes without angles turn as far as `eyeLook*` say.
    """
    turns = frames.turns.astype(np.float32).copy()
    if not turns[:, 1:].any():
        for eye, side, inwards in ((1, "Left", -1), (2, "Right", 1)):

            def look(way: str, side: str = side) -> np.ndarray:
                values: np.ndarray = frames.values[:, NAMES.index(f"eyeLook{way}{side}")]
                return values

            turns[:, eye, 0] = FULL_LOOK * inwards * (look("In") - look("Out"))
            turns[:, eye, 1] = FULL_LOOK * (look("Down") - look("Up"))
    matrices: np.ndarray = roma.euler_to_rotmat("YXZ", torch.from_numpy(turns)).numpy()
    return matrices


def _named(head: HeadModel, remedy: str) -> tuple[str, ...]:
    """The names of a head model's expressions. Raises InputError where none is ARKit's."""
    if not set(head.expression_names) & set(NAMES):
        raise InputError(f"the expressions of {head.name} have no names of ARKit; {remedy}")
    return head.expression_names


def _angles(R: Tensor) -> Tensor:
    """(N, 3) yaw, pitch and roll of rotations (N, 3, 3), Ry Rx Rz."""
    found: Tensor = roma.rotmat_to_euler("YXZ", R)
    return found


def _jaw_shares(jaw: np.ndarray, head: HeadModel) -> np.ndarray:
    """(N, 4) activations of `JAW` that move the mean face most like turns (N, 3, 3) of the jaw joint.

    To one side counts as the opposite of to the other, so that one of them is zero.
    """
    names = head.expression_names or ()
    shares = np.zeros((len(jaw), len(JAW)), np.float32)
    if not set(JAW) <= set(names):
        return shares
    forward, left, opened, right = (head.expressiondirs[:, :, names.index(name)].flatten() for name in JAW)
    basis = torch.stack([forward, (left - right) / 2, opened], 1)
    turns = torch.from_numpy(np.asarray(jaw, np.float32))
    for start in range(0, len(jaw), 64):
        moved = (head(jaw=turns[start : start + 64]) - head()).flatten(1)
        ahead, aside, open_ = torch.linalg.lstsq(basis, moved.T).solution.numpy()
        shares[start : start + 64] = np.stack([ahead, aside.clip(0), open_, (-aside).clip(0)], 1)
    return shares.clip(0)


def jaw_joint(frames: Activations, head: HeadModel) -> tuple[np.ndarray, np.ndarray]:
    """Turns of the jaw joint (N, 3, 3) that `of_track` writes as activations of `JAW`, and what they leave (N, 4).

    The inverse of what it does: trackers turn the joint, and avatars have learned from them. The joint opens and turns
    to the sides; what it can't do, such as pushing the jaw forward, is left to the activations. Where the file says how
    the joint turns, it does so.
    """
    values = frames.values[:, [NAMES.index(name) for name in JAW]]
    if frames.jaw is not None:
        said: np.ndarray = roma.euler_to_rotmat("YXZ", torch.from_numpy(frames.jaw)).numpy()
        return said, (values - _jaw_shares(said, head)).clip(0, 1)
    opening, opened, _, aside = jaw_table(head)
    angle = np.interp(values[:, 2], opened, opening)
    side = (values[:, 1] - values[:, 3]) / np.interp(angle, opening, aside)
    vectors = np.stack([angle, side.clip(-0.3, 0.3), np.zeros_like(angle)], 1).astype(np.float32)
    turns: np.ndarray = roma.rotvec_to_rotmat(torch.from_numpy(vectors)).numpy()
    return turns, (values - _jaw_shares(turns, head)).clip(0, 1)


def jaw_table(head: HeadModel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(k,) radians of the open jaw joint; at each jawOpen, jawForward, and jawLeft less jawRight of a radian aside."""
    opening = np.linspace(0, 0.6, 25, dtype=np.float32)
    step = np.float32(0.05)
    vectors = np.zeros((2, len(opening), 3), np.float32)
    vectors[..., 0], vectors[1, :, 1] = opening, step
    turns = roma.rotvec_to_rotmat(torch.from_numpy(vectors.reshape(-1, 3))).numpy()
    shares = _jaw_shares(turns, head).reshape(2, len(opening), 4)
    aside = (shares[1, :, 1] - shares[1, :, 3]) / step
    return opening, np.maximum.accumulate(shares[0, :, 2]), shares[0, :, 0], np.where(np.abs(aside) < 1e-3, 1e9, aside)


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
        jaw = None
        if all(name.lower() in head for name in JAW_ANGLES):
            jaw = np.array([[float(row[head[name.lower()]]) for name in JAW_ANGLES] for row in body], np.float32)
        fps = _rate([row[head["timecode"]] for row in body]) if "timecode" in head else 60.0
        numbers = [values, turns, *([] if jaw is None else [jaw])]
        fine = len(there) > 0 and len(body) > 0 and all(np.isfinite(array).all() for array in numbers)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a CSV of Live Link Face") from error
    except (csv.Error, ValueError, IndexError, OverflowError):
        fine = False
    if not fine:
        raise InputError(f"{path} is not a CSV of Live Link Face with ARKit's names and numbers; record it again")
    return Activations(fps, values, turns.reshape(-1, 3, 3), jaw)


def _rate(codes: list[str]) -> float:
    """Frames per second of time codes, by how many there are in their whole seconds; 60 where that can't be told."""
    seconds = [code.rpartition(":")[0] for code in codes]
    counts = [seconds.count(second) for second in dict.fromkeys(seconds)][1:-1]
    return float(np.median(counts)) if counts else 60.0
