"""Motion by the sweeps themselves: what the other frames see through has moved, and where to is found by matching it.

Points above the ground are grouped; a group of which a part is seen through at other moments moves, by the velocity
for which most of its points meet points of moving groups at all other moments at once: differences of places, divided
by the time between, vote (as the shifts in ICP-Flow, Lin and Caesar 2024), so that the next car of a row, which lies
right for one sweep, does not for another. Of a group for which none is found, those of its points that are met unmoved
stand, and the rest, the cyclist beside a parked car, is matched alone. Ground, and groups that nothing sees through,
stand.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from recon4d.cameras import Camera
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from flux4d.clips import Clip, in_view
from flux4d.seen_through import behind, carried

REACH = 90.0  # metres around the first frame
GROUND = 0.25  # metres above the lowest point around, up to which it is ground
ROAD = 0.1  # the same, beside what moves: wheels and feet move with it
BESIDE = 0.3  # metres, seen from above, within which they are
TALL = 4.5  # metres above it, from which nothing on a road moves: bridges would join what drives below them
PATCH = 1.0  # metres: cells of the lowest points
LOW = 0.1  # share of a cell's points below the ground
CELL = 0.4  # metres between points of one group, seen from above
THROUGH = 0.4, 0.02  # metres, and by distance, by which what is seen lies behind a point that is seen through
SHARE = 0.12  # of a group's points, from which seen through it moves
LEAST = 5  # points of a group, and seen through
MOST = 250  # points of a group that are matched
VOTERS, MOST_OTHERS = 100, 3000  # of them those that vote, and points of another sweep that they vote with
APART = 0.15, 0.65  # seconds between sweeps that are matched
FASTEST, STEP = 40.0, 0.5  # m/s, of votes
CANDIDATES, UNLIKE = 3, 3.0  # velocities with the most votes that are tried, m/s between them
SURE = 0.9  # share that meets, from which no other is tried
LEVEL = 0.3  # metres by which points that meet may differ in height
MEETS = 0.3  # metres between points that meet
BETTER = 0.02  # by which share more a velocity that is handed on has to fit
COVERED = 0.4, 0.1  # share of a group on which another has to come to lie to hand its velocity on, and if it moves
SEEN = 0.3  # share of a group in view of another sweep, to be looked for there
DOUBT = 1 / 3  # power of the share of sweeps that see it, by which a match is worth less
LEAST_MET = 0.4  # share of a group that has to meet others
GAIN = 0.1  # by which share more of a group has to meet others moved than unmoved
ALONG = 0.8  # metres from the nearest point of what moves, up to which a point goes with it
STANDS = 0.5  # share of the other sweeps that a point has to be met in unmoved, to stand


@dataclass(frozen=True, eq=False)
class Other:
    """Another sweep: seconds to it, the points of its moving groups, those of all, and the cameras of its pictures."""

    apart: float
    tree: cKDTree
    every: cKDTree
    cameras: list[Camera]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Points (N, 3) of an input sweep in view, its moment, and of each point its group, 0 is the ground. moves: by
    group. velocity: (G, 3) m/s by group, not a number where nothing was found. low: heights of the ground, of
    `_lowest`."""

    points: np.ndarray
    time: float
    group: np.ndarray
    moves: np.ndarray
    velocity: np.ndarray
    low: np.ndarray


def sweeps_of(clip: Clip, depths: list[Tensor], skies: list[Tensor]) -> list[Sweep]:
    """The input sweeps, grouped and matched. depths, skies: (H, W) metres and bool of the input
    pictures."""
    frames = sorted({clip.frame_of(picture) for picture in clip.input})
    found: list[Sweep] = []
    low = _lowest([clip.points[frame].numpy() for frame in frames])
    for frame in frames:
        points = clip.points[frame]
        inside = torch.stack(
            [in_view(points, clip.camera(picture))[2] for picture in clip.input if clip.frame_of(picture) == frame]
        ).any(0)
        near = (points[:, :2].abs() < REACH - 1).all(1)
        points = points[inside & near]
        through = torch.zeros(len(points), dtype=torch.bool)
        for picture, depth, sky in zip(clip.input, depths, skies):
            seen, relative, far = behind(points, clip, picture, depth, sky)
            through[seen] |= relative * far > THROUGH[0] + THROUGH[1] * far
        places = points.numpy().astype(np.float64)
        group = _groups(places, low)
        count = np.bincount(group)
        seen_through = np.bincount(group, through.numpy())
        moves = (seen_through >= np.maximum(SHARE * count, LEAST)) & (np.arange(len(count)) > 0)
        nothing = np.full((len(count), 3), np.nan)
        found.append(Sweep(places, float(clip.lidar_times[frame]), group, moves, nothing, low))
    cameras = [[clip.camera(picture) for picture in clip.input if clip.frame_of(picture) == frame] for frame in frames]
    found = _matched(found, _around(found, cameras))
    found = [_parted(sweep, others) for sweep, others in zip(found, _around(found, cameras))]
    around = _around(found, cameras)
    return _handed_on(_matched(found, around), around)


def _around(sweeps: list[Sweep], cameras: list[list[Camera]]) -> list[list[Other]]:
    """For each sweep the others that it is matched with. cameras: of each sweep's pictures."""
    trees = [cKDTree(sweep.points[sweep.moves[sweep.group]]) for sweep in sweeps]
    whole = [cKDTree(sweep.points[sweep.group > 0]) for sweep in sweeps]
    return [
        [
            Other(other.time - sweep.time, tree, every, views)
            for other, tree, every, views in zip(sweeps, trees, whole, cameras)
            if APART[0] <= abs(other.time - sweep.time) <= APART[1] and tree.n
        ]
        for sweep in sweeps
    ]


def _matched(sweeps: list[Sweep], around: list[list[Other]]) -> list[Sweep]:
    """The sweeps with the velocities of those moving groups that have none yet."""
    out = []
    for number, (sweep, others) in enumerate(zip(sweeps, around)):
        velocity = sweep.velocity.copy()
        for mover in np.flatnonzero(sweep.moves & np.isnan(velocity[:, 0])):
            velocity[mover] = _velocity(sweep.points[sweep.group == mover], others, number)
        out.append(replace(sweep, velocity=velocity))
    return out


def _parted(sweep: Sweep, others: list[Other]) -> Sweep:
    """The sweep, its groups without a velocity parted into what stands and groups of what may move."""
    moves, group = sweep.moves.copy(), sweep.group.copy()
    for mover in np.flatnonzero(moves & np.isnan(sweep.velocity[:, 0])):
        own = np.flatnonzero(group == mover)
        restless = own[~_stands(sweep.points[own], others)]
        moves[mover] = False
        parts = _connected(sweep.points[restless])
        for part in range(1, parts.max(initial=0) + 1):
            group[restless[parts == part]] = len(moves)
            moves = np.append(moves, (parts == part).sum() >= LEAST)
    more = np.full((len(moves) - len(sweep.moves), 3), np.nan)
    return replace(sweep, group=group, moves=moves, velocity=np.concatenate([sweep.velocity, more]))


def _stands(points: np.ndarray, others: list[Other]) -> np.ndarray:
    """(N,) whether points are met unmoved in STANDS of the other sweeps that see their place; False where none does."""
    met, count = np.zeros(len(points)), np.zeros(len(points))
    for other in others:
        seen = _in_views(points, other)
        met[seen] += np.isfinite(other.every.query(points[seen], distance_upper_bound=MEETS)[0])
        count += seen
    return (count > 0) & (met >= STANDS * count)


def _handed_on(sweeps: list[Sweep], others: list[list[Other]]) -> list[Sweep]:
    """The sweeps, their groups with the velocities of groups that come to lie on them, where those fit better.

    The long side of a lorry lies on itself for any speed and nothing sees through it, but at another moment its front
    or its back was seen.
    """
    out = []
    for sweep, around in zip(sweeps, others):
        of_group = [sweep.points[sweep.group == group] for group in range(len(sweep.moves))]
        moves, velocity = sweep.moves.copy(), sweep.velocity.copy()
        scores = [_worth(points, speed, around) for points, speed in zip(of_group, velocity)]
        for other in sweeps:
            apart = sweep.time - other.time
            if not APART[0] <= abs(apart) <= APART[1]:
                continue
            for group in np.flatnonzero(np.isfinite(other.velocity[:, 0])):
                handed = other.velocity[group]
                there = cKDTree(other.points[other.group == group] + apart * handed)
                for target in _beside(of_group, there):
                    covered = np.isfinite(there.query(of_group[target], distance_upper_bound=MEETS)[0]).sum()
                    if covered < max(COVERED[int(sweep.moves[target])] * len(of_group[target]), LEAST):
                        continue
                    score = _worth(of_group[target], handed, around)
                    if score > scores[target] + BETTER:
                        moves[target], velocity[target], scores[target] = True, handed, score
        out.append(replace(sweep, moves=moves, velocity=velocity))
    return out


def _beside(groups: list[np.ndarray], tree: cKDTree) -> list[int]:
    """The groups, but the ground, whose bounds meet those of a tree's points."""
    low, high = tree.mins - MEETS, tree.maxes + MEETS
    return [
        number
        for number, points in enumerate(groups)
        if number and len(points) and (points.max(0) >= low).all() and (points.min(0) <= high).all()
    ]


def _cell(points: np.ndarray, size: float) -> np.ndarray:
    return np.clip(np.floor((points[:, :2] + REACH) / size), 0, 2 * REACH / size - 1).astype(int)


def _lowest(sweeps: list[np.ndarray]) -> np.ndarray:
    """Height of the ground around each cell of PATCH, a low quantile, and not the lowest, as reflections lie below it;
    infinite where there is none."""
    side = int(2 * REACH / PATCH)
    points = np.concatenate(sweeps)
    points = points[(np.abs(points[:, :2]) < REACH).all(1)]
    x, y = _cell(points, PATCH).T
    order = np.lexsort([points[:, 2], x * side + y])
    cells, first, count = np.unique((x * side + y)[order], return_index=True, return_counts=True)
    low = np.full(side * side, np.inf)
    low[cells] = points[order[first + (LOW * count).astype(int)], 2]
    return ndimage.rank_filter(low.reshape(side, side), 1, 3)


def _groups(points: np.ndarray, low: np.ndarray) -> np.ndarray:
    """(N,) group of each point: connected cells above the ground, seen from above; 0 is the ground, and what
    is taller than things that drive."""
    height = _height(points, low)
    above = (height > GROUND) & (height < TALL)
    group = np.zeros(len(points), int)
    group[above] = _connected(points[above])
    return group


def _height(points: np.ndarray, low: np.ndarray) -> np.ndarray:
    """(N,) metres of points above the ground around them."""
    x, y = _cell(points, PATCH).T
    return points[:, 2] - low[x, y]


def _connected(points: np.ndarray) -> np.ndarray:
    """(N,) number of each point's connected cells, seen from above, from 1."""
    side = int(2 * REACH / CELL)
    occupied = np.zeros((side, side), bool)
    x, y = _cell(points, CELL).T
    occupied[x, y] = True
    labels, _ = ndimage.label(occupied, np.ones((3, 3)))
    return labels[x, y]


def _velocity(points: np.ndarray, others: list[Other], seed: int) -> np.ndarray | float:
    """(3,) m/s of a group's points; not a number where they meet no more points than unmoved."""
    if len(points) < LEAST or not others:
        return np.nan
    if len(points) > MOST:
        points = points[np.random.default_rng(seed).choice(len(points), MOST, replace=False)]
    side = int(2 * FASTEST / STEP)
    votes = np.zeros((side, side))
    for other in others:
        apart, tree = other.apart, other.tree
        theirs, own = tree.data[:: tree.n // MOST_OTHERS + 1], points[:: len(points) // VOTERS + 1]
        mine, yours = np.nonzero(np.abs(theirs[None, :, 2] - own[:, None, 2]) < LEVEL)
        speed = (theirs[yours, :2] - own[mine, :2]) / apart
        speed = speed[(np.abs(speed) < FASTEST).all(1)]
        x, y = np.clip(np.floor((speed + FASTEST) / STEP), 0, side - 1).astype(int).T
        counts = np.bincount(x * side + y, minlength=side * side).reshape(side, side).astype(float)
        counts = ndimage.gaussian_filter(counts, 0.2 / abs(apart) / STEP)  # the same length on the road
        votes += counts / max(counts.max(), 1e-9)
    best, most = np.zeros(3), -1.0
    for _ in range(CANDIDATES):
        at = np.array(np.unravel_index(votes.argmax(), votes.shape))
        velocity = _refined(points, np.array([*((at + 0.5) * STEP - FASTEST), 0.0]), others)
        worth = _worth(points, velocity, others)
        if worth > most:
            best, most = velocity, worth
        if most > SURE:
            break
        near = (slice(max(place - int(UNLIKE / STEP), 0), place + int(UNLIKE / STEP) + 1) for place in at)
        votes[tuple(near)] = 0
    # unmoved also those of groups that stand: what is seen through once may stand for all that
    unmoved = _meets(points, np.zeros(3), [replace(other, tree=other.every) for other in others])
    met = _meets(points, best, others)
    return best if met > LEAST_MET and met > unmoved + GAIN else np.nan


def _refined(points: np.ndarray, velocity: np.ndarray, others: list[Other]) -> np.ndarray:
    """(3,) m/s of a group's points: the least squares of what is left between those that meet, nearer and nearer."""
    for reach in (1.0, 0.7, 0.5, 0.4, 0.4, 0.4):
        top, bottom = np.zeros(3), 0.0
        for other in others:
            apart, tree = other.apart, other.tree
            distance, nearest = tree.query(points + apart * velocity, distance_upper_bound=reach)
            met = np.isfinite(distance)
            if met.any():
                left = tree.data[nearest[met]] - points[met] - apart * velocity
                top += apart * left.sum(0)
                bottom += apart * apart * met.sum()
        velocity = velocity + top / max(bottom, 1e-9)
    return velocity


def _meets(points: np.ndarray, velocity: np.ndarray, others: list[Other]) -> float:
    """Share of a group's points that meet points of other sweeps, moved by a velocity; 0 for none."""
    shares = _shares(points, velocity, others)
    return float(np.mean(shares)) if shares else 0.0


def _worth(points: np.ndarray, velocity: np.ndarray, others: list[Other]) -> float:
    """`_meets`, less where fewer sweeps see it: out of view nothing speaks against a velocity."""
    shares = _shares(points, velocity, others)
    return float(np.mean(shares) * (len(shares) / len(others)) ** DOUBT) if shares else 0.0


def _shares(points: np.ndarray, velocity: np.ndarray, others: list[Other]) -> list[float]:
    """The same of each other sweep in whose view the group is then: what has left it meets nothing."""
    shares: list[float] = []
    if not np.isfinite(velocity).all() or not len(points):
        return shares
    for other in others:
        moved = points + other.apart * velocity
        seen = _in_views(moved, other)
        if seen.sum() >= max(SEEN * len(points), LEAST):
            met = other.tree.query(moved[seen], distance_upper_bound=MEETS)[0]
            shares.append(float(np.isfinite(met).mean()))
    return shares


def _in_views(points: np.ndarray, other: Other) -> np.ndarray:
    """(N,) whether points are in view of a sweep's pictures."""
    places = torch.from_numpy(points).float()
    return torch.stack([in_view(places, camera)[2] for camera in other.cameras]).any(0).numpy()


def settled(points: Tensor, colours: Tensor, times: Tensor, clip: Clip, sweeps: list[Sweep]) -> tuple[Tensor, Tensor]:
    """Velocities (N, 3) in m/s of points (N, 3) of colours (N, 3) seen at times (N,), those of the nearest LiDAR
    points, and whether (N,) they are known: matched, or 0 of what stands.

    Far from all points of what moves, as above the highest beam, may be the roof of a lorry or a house behind it: such
    a point goes with it only if it is seen where it is carried to rather than where it was; else it is not known.
    """
    velocity, known = points.new_zeros(len(points), 3), torch.zeros(len(points), dtype=torch.bool)
    moments = torch.tensor([sweep.time for sweep in sweeps])
    own = (times[:, None] - moments).abs().argmin(1)
    doubt = torch.zeros(len(points), dtype=torch.bool)
    for number, sweep in enumerate(sweeps):
        chosen = own == number
        if not len(sweep.points) or not chosen.any():
            continue
        group, far = _group_of(points[chosen].double().numpy(), sweep)
        found = np.where(sweep.moves[:, None], sweep.velocity, 0.0)[group]
        sure = np.isfinite(found).all(1)
        known[chosen] = torch.from_numpy(sure)
        velocity[chosen] = torch.from_numpy(np.where(sure[:, None], found, 0.0)).float()
        doubt[chosen] = torch.from_numpy(sure & sweep.moves[group] & (far > ALONG))
    known[doubt] = carried(points[doubt], colours[doubt], times[doubt], velocity[doubt], clip)
    velocity[~known] = 0
    return velocity, known


def _group_of(points: np.ndarray, sweep: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """(N,) group of points seen with a sweep: that of its nearest point, but wheels and feet go with what they carry,
    and the road below it and what is above it stay; and (N,) metres to the nearest point."""
    far, nearest = cKDTree(sweep.points).query(points)
    group = sweep.group[nearest]
    height, driven = _height(points, sweep.low), sweep.moves[sweep.group]
    if not driven.any():
        return group, far
    group[sweep.moves[group] & ((height < ROAD) | (height > TALL))] = 0
    foot = np.flatnonzero((group == 0) & (height >= ROAD) & (height < GROUND))
    distance, nearest = cKDTree(sweep.points[driven, :2]).query(points[foot, :2])
    group[foot] = np.where(distance < BESIDE, sweep.group[driven][nearest], 0)
    return group, far
