"""Mattes of a clip by networks and closed-form matting, a stretch of frames at a time.

U2NETP looks at every twelfth frame only; its answers move to the frames between with the head. What a stretch
needs of the frames around it, it works out itself, so stretches are independent, and the result does not depend on how
a clip is divided or where a run was interrupted.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from recon4d import InputError, images
from recon4d.parallel import FEW, start_worker
from recon4d.records import Record

from prep_faces import networks
from prep_faces.affine import warp
from prep_faces.closedform import closed_form
from prep_faces.foreground import foreground
from prep_faces.grabcut import reduced_frame
from prep_faces.guided import guided_filter, linear_model
from prep_faces.headshape import HeadShape
from prep_faces.image_files import ImageFile
from prep_faces.steadiness import View, agreed, carried
from prep_faces.trimap import below_the_head, draw_trimap

KEY = 12  # frames from one that U2NETP sees to the next
REACH = 2  # frames before and after that have a say in a frame
STRETCH = 28  # frames that a process does at a time, at most
DETAIL = 1.2  # of the picture that is matted: the face has up to so many times grabcut.FACE_PIXELS,
PHOTO_DETAIL = 2.0  # in a clip and in a photo
CLOSE = 1.05  # face widths around the eyes that the person network looks at closely
TRUST = 0.01  # of the prior beside the matting Laplacian
LIVE_DETAIL = 1.0
LIVE_SHARES = (0.5, 0.3, 0.2)  # of a frame and the two before it, in live mattes


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a clip."""

    file: ImageFile
    shape: HeadShape | InputError
    target: Path
    wanted: bool  # False: only its neighbours need it


@dataclass(frozen=True, eq=False)
class Way:
    """How frames are matted. method: matting or live. keep: of trimap.KEEP. reach: frames that have a say, each way."""

    method: str
    keep: str
    reach: int


@dataclass(frozen=True, eq=False)
class Look:
    """What one frame shows around its head."""

    image: np.ndarray  # (H, W, 3) uint8
    shape: HeadShape
    picture: np.ndarray  # (h, w, 3) uint8
    view: View
    person: np.ndarray  # (h, w) float32


@dataclass(frozen=True, eq=False)
class Key:
    """U2NETP's answer on one frame. values: (h, w) uint8."""

    values: np.ndarray
    view: View


def matte_clip(frames: Sequence[Frame], way: Way, workers: int) -> Iterator[Record]:
    """Matte and write the frames that are wanted; the record of each of those, in order, without its file's name."""
    wanted = [i for i, frame in enumerate(frames) if frame.wanted]
    workers = min(workers, len(wanted)) if len(wanted) > FEW else 1
    # As many stretches for each worker as for the others, none too long.
    count = max(1, workers * -(-len(wanted) // (workers * STRETCH)))
    size = max(1, -(-len(wanted) // count))
    stretches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
            yield from _in_order(frames, way, stretches, pool, workers)
        return
    keys: dict[int, Key | None] = {}
    for stretch in stretches:
        needed = _keys_of(frames, way, stretch)
        keys = {i: keys[i] if i in keys else look_at_key(frames[i].file, frames[i].shape, way.keep) for i in needed}
        yield from stretch_records(*_around(frames, way, stretch), keys, way)


def _in_order(
    frames: Sequence[Frame], way: Way, stretches: list[list[int]], pool: ProcessPoolExecutor, workers: int
) -> Iterator[Record]:
    """Records of all stretches; the key frames of those to come are looked at while others are worked on."""
    keys: dict[int, Future[Key | None]] = {}
    ready: deque[tuple[list[int], list[int]]] = deque()
    running: deque[Future[list[Record]]] = deque()
    coming = iter(stretches)

    def prepare() -> None:
        stretch = next(coming, None)
        if stretch is None:
            return
        needed = _keys_of(frames, way, stretch)
        for i in needed:
            if i not in keys:
                keys[i] = pool.submit(look_at_key, frames[i].file, frames[i].shape, way.keep)
        ready.append((stretch, needed))

    for _ in range(workers):
        prepare()
    while ready or running:
        while ready and len(running) < workers:
            stretch, needed = ready.popleft()
            found = {i: keys[i].result() for i in needed}
            for old in [i for i in keys if i < min(needed, default=0)]:
                del keys[old]
            running.append(pool.submit(matte_stretch, *_around(frames, way, stretch), found, way))
            prepare()
        yield from running.popleft().result()


def _around(frames: Sequence[Frame], way: Way, stretch: list[int]) -> tuple[list[Frame], int]:
    """A stretch with the frames that have a say in it, which it does not write itself; the number of the first."""
    low, high = max(0, stretch[0] - 2 * way.reach), min(len(frames), stretch[-1] + 2 * way.reach + 1)
    chosen = set(stretch)
    return [replace(frames[i], wanted=i in chosen) for i in range(low, high)], low


def _keys_of(frames: Sequence[Frame], way: Way, stretch: list[int]) -> list[int]:
    """Which frames U2NETP has to see for a stretch: of every KEY frames the first that has a head."""
    if way.method == "live" or way.reach == 0:
        return []
    first, last = max(0, stretch[0] - way.reach) // KEY, (stretch[-1] + way.reach) // KEY + 1
    slots = []
    for slot in range(first, last + 1):
        group = range(slot * KEY, min((slot + 1) * KEY, len(frames)))
        head = next((i for i in group if isinstance(frames[i].shape, HeadShape)), None)
        slots += [] if head is None else [head]
    return slots


def look_at_key(file: ImageFile, shape: HeadShape | InputError, keep: str) -> Key | None:
    """What U2NETP sees in a frame; None where it cannot be read."""
    try:
        if isinstance(shape, InputError):
            raise shape
        shape, to_small, picture = _picture(images.read(file.path), shape, DETAIL, keep, file.file)
    except InputError:
        return None  # its own record will say so
    return _key(picture, View(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), to_small, shape.anchors))


def _key(picture: np.ndarray, view: View) -> Key:
    height, width = picture.shape[:2]
    values = cv2.resize(networks.salient(picture), (width, height), interpolation=cv2.INTER_LINEAR)
    return Key(np.rint(255 * values).astype(np.uint8), view)


def _picture(
    image: np.ndarray, shape: HeadShape, detail: float, keep: str, name: str
) -> tuple[HeadShape, np.ndarray, np.ndarray]:
    """The shape of the head in an image (H, W, 3), and to_small (2, 3) with the part around the head."""
    shape = shape.fitted(*image.shape[:2])
    if not shape.visible(*image.shape[:2]):
        raise InputError(f"{name}: the head lies outside of the image; check that the points belong to it")
    to_small, height, width = reduced_frame(shape, image.shape[0], image.shape[1], detail, whole=keep == "portrait")
    return shape, to_small, warp(image, to_small, height, width)


def matte_stretch(frames: list[Frame], start: int, keys: dict[int, Key | None], way: Way) -> list[Record]:
    """`stretch_records`, all at once, for another process."""
    return list(stretch_records(frames, start, keys, way))


def stretch_records(frames: list[Frame], start: int, keys: dict[int, Key | None], way: Way) -> Iterator[Record]:
    """Matte and write the wanted ones of `frames`, those from the clip's frame `start` on; the record of each."""
    looks: dict[int, Look | InputError] = {}
    alphas: dict[int, np.ndarray] = {}
    seen = {slot: key for slot, key in keys.items() if key is not None}

    def look(i: int) -> Look | InputError | None:
        if not 0 <= i - start < len(frames):
            return None
        if i not in looks:
            looks[i] = _look(frames[i - start], way)
        return looks[i]

    def around(i: int, reach: int) -> list[int]:
        """Frames that have a say: as many before as after, since a lopsided vote lags behind a head that moves."""
        each = reach
        while each and (i - each < 0 or look(i - each) is None or look(i + each) is None):
            each -= 1
        return [j for j in range(i - each, i + each + 1) if j != i and isinstance(look(j), Look)]

    def alpha(i: int) -> np.ndarray:
        if i not in alphas:
            here = looks[i]
            assert isinstance(here, Look)
            persons = [_moved(looks[j], here) for j in around(i, way.reach)]  # type: ignore[arg-type]
            alphas[i] = _matted(here, agreed(here.person, persons), _salience(here, i, seen), way.keep)
        return alphas[i]

    for i, frame in enumerate(frames, start):
        if not frame.wanted:
            continue
        here = look(i)
        try:
            if not isinstance(here, Look):
                raise here or InputError(f"{frame.file.file} was not looked at")
            if way.method == "live":
                before = [item for item in map(look, range(i - 1, i - 1 - way.reach, -1)) if isinstance(item, Look)]
                cover = live_cover(here, before)
            else:
                others = [carried(alpha(j), looks[j].view, here.view) for j in around(i, way.reach)]  # type: ignore[union-attr]
                cover = agreed(alpha(i), others)
            yield _finish(here, cover, frame.target, way)
        except InputError as error:
            if isinstance(frame.shape, HeadShape):
                frame.target.unlink(missing_ok=True)  # of an earlier run
            yield {"error": str(error)}
        for old in [j for j in looks if j < i - 2 * way.reach]:
            looks.pop(old)
            alphas.pop(old, None)


def _look(frame: Frame, way: Way) -> Look | InputError:
    try:
        if isinstance(frame.shape, InputError):
            raise frame.shape
        return look_at(images.read(frame.file.path), frame.shape, way, frame.file.file)
    except InputError as error:
        return error


def look_at(image: np.ndarray, shape: HeadShape, way: Way, name: str = "the frame") -> Look:
    """What an image (H, W, 3) uint8 RGB shows around a head. Raises InputError where the shape does not fit it."""
    detail = LIVE_DETAIL if way.method == "live" else DETAIL if way.reach else PHOTO_DETAIL
    shape, to_small, picture = _picture(image, shape, detail, way.keep, name)
    view = View(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), to_small, shape.anchors)
    if way.method == "live":
        height, width = picture.shape[:2]
        person = cv2.resize(networks.person(picture), (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        middle = to_small[:, :2] @ shape.middle + to_small[:, 2]
        scale = float(np.sqrt(abs(np.linalg.det(to_small[:, :2]))))
        person = networks.person_around(picture, middle, CLOSE * shape.width * scale, both=not way.reach)
    return Look(image, shape, picture, view, person)


def _moved(there: Look, here: Look) -> tuple[np.ndarray, np.ndarray]:
    """Where another frame shows the person, moved with the head alone: the network's answers are coarse."""
    height, width = here.person.shape
    motion = here.view.motion(there.view)
    inside = warp(np.ones(there.person.shape, np.float32), motion, height, width) > 0.99
    return warp(there.person, motion, height, width), inside


def _salience(here: Look, i: int, keys: dict[int, Key]) -> np.ndarray:
    """What U2NETP says of a frame, (h, w) float32, from the frames before and after that it saw."""
    before = max((slot for slot in keys if slot <= i), default=None)
    after = min((slot for slot in keys if slot > i), default=None)
    near = [slot for slot in (before, after) if slot is not None and abs(slot - i) <= 2 * KEY]
    if not near:  # a photo, or nothing around could be read
        return _key(here.picture, here.view).values.astype(np.float32) / 255
    total = np.zeros(here.person.shape, np.float32)
    weight = np.zeros(here.person.shape, np.float32)
    for slot in near:
        values, sure = carried(keys[slot].values.astype(np.float32) / 255, keys[slot].view, here.view)
        # Nearer in time counts more, so that nothing jumps where one key takes over from the other.
        share = (1 - min(abs(slot - i) / (max(near) - min(near)), 1) if len(near) > 1 else 1.0) + 1e-3
        trusted = share * np.where(sure, 1.0, 0.05).astype(np.float32)
        total += trusted * values
        weight += trusted
    answer: np.ndarray = total / weight
    return answer


def _matted(here: Look, person: np.ndarray, salient: np.ndarray, keep: str) -> np.ndarray:
    """Alpha of a picture (h, w) before the cut below the head."""
    trimap = draw_trimap(here.picture, salient, person, here.shape, here.view.to_small, keep)
    weight = np.full(person.shape, TRUST, np.float32)
    return closed_form(here.picture.astype(np.float32) / 255, trimap.known, trimap.unknown, trimap.prior, weight)


def live_cover(here: Look, before: Sequence[Look]) -> np.ndarray:
    """Alpha (h, w) from selfie segmentation alone, of a frame and up to two before it, the latest first."""
    total, weight = LIVE_SHARES[0] * here.person, LIVE_SHARES[0]
    for share, look in zip(LIVE_SHARES[1:], before):
        total = total + share * _moved(look, here)[0]
        weight += share
    return guided_filter(here.picture.astype(np.float32) / 255, (total / weight).astype(np.float32), 4, 1e-3)


def _finish(here: Look, cover: np.ndarray, target: Path, way: Way) -> Record:
    """Write one RGBA PNG of the image's size; what to record. Raises InputError where nothing is left."""
    image, to_small = here.image, here.view.to_small
    height, width = image.shape[:2]
    scales = np.diag(to_small[:, :2])
    low = np.rint(-to_small[:, 2] / scales).astype(int)
    high = np.minimum(low + np.rint(np.array(cover.shape[::-1]) / scales).astype(int), [width, height])
    part = np.s_[low[1] : high[1], low[0] : high[0]]
    cover = np.clip((cover - 0.02) / 0.96, 0, 1)
    kept = below_the_head(here.shape, to_small, cover.shape, way.keep)
    fine = upsampled(image[part], here.picture, cover) * cv2.resize(
        kept, tuple(high - low), interpolation=cv2.INTER_LINEAR
    )
    alpha = np.zeros((height, width), np.float32)
    alpha[part] = np.where(fine < 0.012, 0, fine)  # three steps of 8 bits
    if not (alpha > 0.5).any():
        raise InputError("no head found around the face")
    colors = np.where(alpha[..., None] > 0, foreground(image, alpha), np.uint8(0))  # what is behind packs badly
    images.write_png(target, np.dstack([colors, np.rint(255 * alpha).astype(np.uint8)]))
    ys, xs = np.nonzero(alpha > 0.5)
    return {
        "width": width,
        "height": height,
        "coverage": round(float(alpha.mean()), 5),
        "box": [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1],
    }


def upsampled(image: np.ndarray, picture: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """`cover` (h, w) of a reduced picture (h, w, 3) at the resolution of the image (H, W, 3) that it was made of."""
    size = image.shape[1::-1]
    smooth = cv2.resize(cover, size, interpolation=cv2.INTER_LINEAR)
    if cover.shape[0] > 0.75 * image.shape[0]:
        return smooth
    # In the band alpha follows the image's own colours, as it does those of the picture.
    slope, offset = linear_model(picture.astype(np.float32) / 255, cover.astype(np.float32), 2, 1e-4)
    both = cv2.resize(np.dstack([slope, offset]), size, interpolation=cv2.INTER_LINEAR)
    sharp = np.einsum("hwc,hwc->hw", both[..., :3], image.astype(np.float32) / 255) + both[..., 3]
    mixed = (smooth > 0.004) & (smooth < 0.996)
    return np.where(mixed, np.clip(sharp, 0, 1), smooth)
