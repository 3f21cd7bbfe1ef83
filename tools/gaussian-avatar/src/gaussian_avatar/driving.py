"""What moves an avatar besides its own clip: other people's tracks, phones' activations, other trackers' parameters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import roma
import torch
from recon4d import InputError, retargeting
from recon4d.files import read_npz
from recon4d.formats import arkit, deca, insta, mediapipe, vhap
from recon4d.formats.arkit import Activations
from recon4d.formats.track import Track, from_arrays
from recon4d.head import HeadModel

from gaussian_avatar import motions
from gaussian_avatar.motions import Motion, frontal_frame
from gaussian_avatar.runs import Run

Transfer = Literal["absolute", "relative"]
OPEN = "open-head"  # as its tracks name it
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
REST = 0.1  # quantile of an activation that counts as a person's rest: it only ever adds


def track_of(
    run: Run,
    path: str | Path,
    transfer: Transfer = "absolute",
    log: Callable[[str], None] = lambda _: None,
    head_model: str | Path | None = None,
) -> Track:
    """Read what is to move a run's avatar, as a track that its head model and `motions.from_track` take.

    Args:
        path: a `track.npz`; a CSV of Live Link Face (ARKit's activations, head and gaze); MediaPipe's blendshapes as
            .json or .jsonl (`recon4d.formats.mediapipe`; `landmarks.jsonl` of prep-faces is one); a folder of `.frame`
            files; FLAME's parameters as VHAP writes them, one npz or a folder; pickles of DECA and EMOCA, and folders
            of EMOCA's (`recon4d.formats.deca`).
        transfer: `absolute` takes the driver's values as they are. `relative` adds the driver's change from its own
            neutral to the avatar's neutral, so that nothing of the driver's face, seat or camera is carried over; see
            `neutral`.
        log: gets one sentence for each thing that is left out.
        head_model: the FLAME file whose parameters they are; None is the avatar's own head, or the open head where
            the file says so. What is of another head model than the avatar's is fitted to it, `recon4d.retargeting`.

    Returns:
        A track of N frames with the coefficients of the run's head model. Only `shape` may be another person's: give
        `shape=run.track.shape` to `motions.from_track`. A driver that knows no camera (activations, parameters without
        `transforms.json`) and a relative one are before the run's own (first) camera, the neck where the avatar's is.

    Raises:
        InputError: a missing or broken file, a kind that is not known, coefficients of another head model, head models
            without landmarks.
    """
    path = Path(path)
    theirs = run.head if head_model is None else motions.load_head(head_model)
    track, placed, theirs = _read(run, theirs, path, log)
    motions.check_track(track, theirs, str(path), log)
    if theirs is not run.head and not _same(theirs, run.head):
        track = _fitted(run, track, theirs, path, log)
    if transfer == "relative":
        return _relative(run, track, placed)
    return track if placed else _before_own_camera(run, track)


def motion_of(
    run: Run,
    path: str | Path | None,
    transfer: Transfer = "absolute",
    log: Callable[[str], None] = lambda _: None,
    head_model: str | Path | None = None,
) -> tuple[Motion, Track]:
    """What is to be rendered, on the run's identity, and its track: the training clip where `path` is None.

    Pictures are not larger than those that the avatar was trained on. Raises InputError as `track_of` does.
    """
    if path is None:
        return run.motion, run.track
    track = track_of(run, path, transfer, log, head_model)
    motion = motions.from_track(track, run.head, shape=run.track.shape)
    own, camera = run.motion.camera, motion.camera
    scale = max(own.width, own.height) / max(camera.width, camera.height)
    if scale < 1:  # not above the size that the Gaussians were made for
        motion = motions.resized(motion, round(camera.width * scale), round(camera.height * scale))
    return motion, track


def _read(run: Run, theirs: HeadModel, path: Path, log: Callable[[str], None]) -> tuple[Track, bool, HeadModel]:
    """The driver's track, whether its camera and the head's place before it are known, and the head model it is of."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / "track.npz").is_file():
            return _read(run, theirs, path / "track.npz", log)
        if any(path.glob("*.frame")) or any((path / "checkpoint").glob("*.frame")):
            track, notes = insta.read_motion(path, theirs.name)
            for note in notes:
                log(f"{path}: {note}")
            _check_size(track, theirs, path)
            return track, True, theirs
        if deca.is_folder(path):
            return deca.read(path, _flame(theirs, path)), False, theirs
        found = vhap.read(path, _flame(theirs, path))
        return found.track, found.placed, theirs
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a track, a CSV of Live Link Face or another clip's parameters")
    if suffix in (".csv", ".json", ".jsonl"):
        frames = arkit.read(path) if suffix == ".csv" else mediapipe.read(path)
        if run.head.expression_names:
            return _of_activations(run, frames), False, run.head
        theirs = motions.load_head(None)
        return _on_open_head(run, frames, theirs), False, theirs
    if suffix in deca.SUFFIXES:
        return deca.read(path, _flame(theirs, path)), False, theirs
    if suffix == ".npz":
        arrays = read_npz(path)
        if "format" not in arrays and vhap.is_one(arrays):
            found = vhap.read(path, _flame(theirs, path))
            return found.track, found.placed, theirs
        if str(arrays.get("format")) != "recon4d-track-1":
            raise InputError(f"{path} is not a track nor FLAME's parameters; make one with flame-encoder track")
        track = from_arrays(arrays, str(path)).of_one_camera()
        if track.head_model == OPEN and not theirs.expression_names:
            theirs = motions.load_head(None)
        _check_size(track, theirs, path)
        return track, True, theirs
    raise InputError(
        f"{path} is none of the drivers: .npz (a track or VHAP's), .csv of Live Link Face, .json or .jsonl with "
        "MediaPipe's blendshapes, .pkl or .pt of DECA and EMOCA, a folder of .frame, VHAP's or EMOCA's files"
    )


def _flame(head: HeadModel, path: Path) -> HeadModel:
    """The head model, if it is a FLAME. Raises InputError for the open head."""
    if head.expression_names:
        raise InputError(
            f"{path} holds FLAME's parameters, and the avatar's head is {head.name}: say of which FLAME they are with "
            "--track-head-model FILE, and they are fitted to it"
        )
    return head


def _check_size(track: Track, head: HeadModel, path: Path) -> None:
    """Raise InputError for FLAME's coefficients on the open head, with what to do about it."""
    if head.expression_names and track.expression.shape[1] > head.n_expression:
        raise InputError(
            f"{path} has {track.expression.shape[1]} expression coefficients, FLAME's; the avatar's head is "
            f"{head.name} with {head.n_expression}: say of which FLAME they are with --track-head-model FILE"
        )


def _same(a: HeadModel, b: HeadModel) -> bool:
    """Whether two head models are one, so that coefficients of one are the other's."""
    pairs = ((a.v_template, b.v_template), (a.expressiondirs, b.expressiondirs), (a.shapedirs, b.shapedirs))
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def _fitted(run: Run, track: Track, theirs: HeadModel, path: Path, log: Callable[[str], None]) -> Track:
    """A track of another head model on the run's; jaw and eyelids go where the avatar's own clip has them."""
    names, jaw, lids = run.head.expression_names, True, True
    free = None
    if names:
        jaw, lids = turns_jaw(run), closes_eyelids(run)
        left_out = (*(arkit.JAW if jaw else ()), *(BLINKS if lids else ()))
        free = [i for i, name in enumerate(names) if name not in left_out]
    made = retargeting.retarget(track, theirs, run.head, free, jaw, lids)
    log(
        f"{path}: fitted from {theirs.name} to {run.head.name}, {made.error.mean():.2f} mm from the driver's face on "
        f"average, which moves by {made.moved.mean():.2f} mm"
    )
    return made.track


def _of_activations(run: Run, frames: Activations) -> Track:
    """ARKit's frames on the run's head; nothing is said of where it is.

    Jaw and eyelids go where the avatar's own clip has them, for it knows no other: a tracker turns the joint and closes
    the eyelids, where another may have used jawOpen and eyeBlink*.
    """
    return _activated(run, frames, run.head, run.track.shape, turns_jaw(run), closes_eyelids(run))


def _on_open_head(run: Run, frames: Activations, head: HeadModel) -> Track:
    """ARKit's frames on the open head's mean face, from which they are fitted to a head without their names."""
    return _activated(run, frames, head, np.zeros(head.n_shape, np.float32), True, True)


def _activated(run: Run, frames: Activations, head: HeadModel, shape: np.ndarray, joint: bool, lids: bool) -> Track:
    """ARKit's frames on a head model with their names: the jaw's joint turned or not, eyelids closed or not."""
    n, names = len(frames.values), head.expression_names
    turns = arkit.rotations(frames)
    still = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))
    expression, jaw, eyelids = arkit.expressions(frames, head), still, np.zeros((n, 2), np.float32)
    if joint:
        columns = [names.index(name) for name in arkit.JAW]
        jaw, expression[:, columns] = arkit.jaw_joint(frames, head)
    if lids:
        columns = [names.index(name) for name in BLINKS]
        eyelids, expression[:, columns] = expression[:, columns].copy(), 0
    return Track(
        head_model=head.name,
        image_size=run.track.image_size,
        fps=frames.fps,
        K=run.track.K,
        names=np.array([f"{i:05d}.png" for i in range(n)]),
        valid=np.ones(n, bool),
        shape=shape,
        expression=expression,
        R=motions.AXES.astype(np.float32) @ turns[:, 0],
        t=np.zeros((n, 3), np.float32),
        neck=still,
        jaw=jaw,
        eyes=turns[:, 1:],
        eyelids=eyelids,
    )


def turns_jaw(run: Run) -> bool:
    """Whether the avatar's own clip turns the jaw's joint, of a head that has ARKit's jaw too."""
    return bool(np.ptp(run.track.jaw, axis=0).any()) and set(arkit.JAW) <= set(run.head.expression_names)


def closes_eyelids(run: Run) -> bool:
    """Whether the avatar's own clip closes the eyelids, of a head that has ARKit's blinks too."""
    there = run.head.eyelids is not None and set(BLINKS) <= set(run.head.expression_names)
    return there and bool(run.track.eyelids.any())


# ------------------------------------------------------------------------------------------------------ head and place


@dataclass(frozen=True, eq=False)
class Held:
    """How N frames hold the head, in the world of `motions` (y up, z towards the camera) with the origin in the camera.

    turn: (N, 3, 3) neck times pose. place: (N, 3) how far the neck's joint is from where the head model has it, metres.
    """

    turn: np.ndarray
    place: np.ndarray


def _held(track: Track, head: HeadModel) -> Held:
    R = (motions.AXES @ track.R).astype(np.float32)
    J = _neck(track, head)
    place = track.t @ motions.AXES.astype(np.float32) + np.einsum("nij,nj->ni", R, J) - J
    return Held(R @ track.neck, place.astype(np.float32))


def _neck(track: Track, head: HeadModel) -> np.ndarray:
    """(N, 3) the neck's joint before it is posed."""
    joints = head.joints(torch.from_numpy(track.shape[None]), torch.from_numpy(track.expression))
    return joints[:, 1].expand(len(track), 3).numpy()


def _seen_by_own_camera(run: Run, track: Track, held: Held) -> Track:
    """The track with the run's identity and camera, the head held so."""
    axes = motions.AXES.astype(np.float32)
    still = np.tile(np.eye(3, dtype=np.float32), (len(track), 1, 1))
    track = replace(track, shape=run.track.shape, K=run.track.K, Ks=None, image_size=run.track.image_size)
    J = _neck(track, run.head)
    t = (held.place - np.einsum("nij,nj->ni", held.turn, J) + J) @ axes
    return replace(track, R=(axes @ held.turn).astype(np.float32), t=t.astype(np.float32), neck=still)


def _before_own_camera(run: Run, track: Track) -> Track:
    """The head turned as the driver's; its place is the avatar's most frontal one, and moves as the driver's does."""
    own, held = _held(run.track.take([frontal_frame(run.track)]), run.head), _held(track, run.head)
    moved = track.t.any()
    place = own.place + (held.place - np.median(held.place, 0) if moved else np.zeros_like(held.place))
    return _seen_by_own_camera(run, track, Held(held.turn, place.astype(np.float32)))


# ------------------------------------------------------------------------------------------------------------ relative


@dataclass(frozen=True, eq=False)
class Neutral:
    """A person at rest: expression (E,), eyelids (2,), jaw (3, 3), eyes (2, 3, 3), and how the head is held."""

    expression: np.ndarray
    eyelids: np.ndarray
    jaw: np.ndarray
    eyes: np.ndarray
    turn: np.ndarray
    place: np.ndarray


def neutral(track: Track, head: HeadModel) -> Neutral:
    """How a clip's person is at rest.

    Activations with names, which only add, and eyelids: their 10 % quantile over the clip. Components without names,
    turns (as rotation vectors) and the head's place: their median.
    """
    chosen = track.valid if track.valid.any() else slice(None)
    at = REST if head.expression_names else 0.5
    held = _held(track, head)

    def middle(R: np.ndarray) -> np.ndarray:
        # About the first frame's turn: rotation vectors of the head's own may jump at half a turn.
        first = torch.from_numpy(R[:1])
        vectors = roma.rotmat_to_rotvec(first.transpose(-1, -2) @ torch.from_numpy(np.ascontiguousarray(R)))
        answer: np.ndarray = (first[0] @ roma.rotvec_to_rotmat(vectors.median(0).values)).numpy()
        return answer

    return Neutral(
        expression=np.quantile(track.expression[chosen], at, axis=0).astype(np.float32),
        eyelids=np.quantile(track.eyelids[chosen], REST, axis=0).astype(np.float32),
        jaw=middle(track.jaw[chosen]),
        eyes=middle(track.eyes[chosen]),
        turn=middle(held.turn[chosen]),
        place=np.median(held.place[chosen], axis=0).astype(np.float32),
    )


def _relative(run: Run, track: Track, placed: bool) -> Track:
    """The driver's change from its neutral on the avatar's neutral, before the run's camera."""
    head = run.head
    theirs, own = neutral(track, head), neutral(run.track, head)
    n = max(track.expression.shape[1], run.track.expression.shape[1])

    def wide(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros((*values.shape[:-1], n - values.shape[-1]), np.float32)], -1)

    expression = wide(track.expression) - wide(theirs.expression) + wide(own.expression)
    if head.expression_names:
        expression = expression.clip(0, 1)
    held = _held(track, head)
    # Turns and ways are told in the frame of the head at rest, so that it does not matter where the camera stood.
    across = own.turn @ theirs.turn.T
    turn = across @ held.turn
    moved = (held.place - theirs.place) @ across.T if placed or track.t.any() else np.zeros_like(held.place)
    changed = replace(
        track,
        expression=expression,
        eyelids=(track.eyelids - theirs.eyelids + own.eyelids).clip(0, 1),
        jaw=own.jaw @ theirs.jaw.T @ track.jaw,
        eyes=own.eyes @ theirs.eyes.transpose(0, 2, 1) @ track.eyes,
    )
    return _seen_by_own_camera(run, changed, Held(turn, (own.place + moved).astype(np.float32)))
