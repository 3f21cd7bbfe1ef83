"""From what the networks, the colours and the head's shape say to what is surely head, surely not, and to be found."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from prep_faces.grabcut import BESIDE, distances, tidy
from prep_faces.guided import guided_filter
from prep_faces.headshape import HeadShape

KEEP = ("head", "head+neck", "portrait")
INNER, OUTER = 0.03, 0.04  # half widths of the band that is matted, inside and outside, in face widths
SURE = 0.9  # of a network
AGREE, REFUSE = 0.6, 0.1  # what networks and colours together must reach where both networks are sure, or be under
NETWORKS = 0.5  # weight of the networks' log odds beside those of colours,
LOGIT, RATIO = 3.0, 4.0  # and the most that either says
SHELL = 0.015  # in face widths: colours that reach farther from the skull teach nothing about the head
BINS = np.array([24, 48, 48])  # of L, a, b
FEW = 20.0  # times the density of all colours alike, under which a colour tells little
ROUNDS = 2
SCALP, HAIR_FALL = 1.5, 0.2  # log odds for hair right beside the skull, and over how many face widths they fall
SHARP = 1.5  # of the log odds that matting starts from


@dataclass(frozen=True, eq=False)
class Trimap:
    """Of a picture (h, w), all arrays of that shape."""

    known: np.ndarray  # float32: alpha where it is known
    unknown: np.ndarray  # bool
    prior: np.ndarray  # float32: alpha as far as networks and colours tell


def draw_trimap(
    picture: np.ndarray, salient: np.ndarray, person: np.ndarray, shape: HeadShape, to_small: np.ndarray, keep: str
) -> Trimap:
    """The trimap of (h, w, 3) uint8 RGB that the 2x3 matrix `to_small` maps the image to.

    `salient` and `person` are the networks' answers, (h, w) float32 in [0, 1].
    """
    height, width = person.shape
    pixels = float(np.sqrt(abs(np.linalg.det(to_small[:, :2])))) * shape.width  # of a face width
    outside, inside, above = distances(shape, to_small, height, width)
    both, either, mean = np.minimum(salient, person), np.maximum(salient, person), (salient + person) / 2
    body = above < -shape.chin
    share = head_share(picture, both, either, mean, outside, inside, body)
    # The mesh knows the neck and the throat better than colours that clothes may share.
    share = np.where((inside > shape.margin) & ~body, np.maximum(share, np.clip(2 * mean, 0, 1)), share)
    guide = picture.astype(np.float32) / 255
    share = guided_filter(guide, share.astype(np.float32), max(2, round(INNER * pixels)), 1e-3)

    mesh = (inside > shape.margin) & ~body & (mean > 0.2)
    front = grown(((both > SURE) & (share > AGREE)) | mesh, -INNER * pixels) | (mesh & (inside > 2 * shape.margin))
    refused = (both < SURE) & (share < REFUSE) & (outside > 0.05)
    back = grown(((either < 1 - SURE) & (share < 1 - AGREE)) | refused, -OUTER * pixels)
    # Another person, or a plate on the wall: what does not hang together with the face is none of it.
    near = grown(tidy((share > 0.5).astype(np.uint8), front & mesh) > 0, OUTER * pixels + 1)
    back |= ~near
    front &= ~back
    odds = np.clip(share, 1e-4, 1 - 1e-4)
    prior = np.where(near, 1 / (1 + ((1 - odds) / odds) ** SHARP), 0).astype(np.float32)
    unknown = ~(front | back) & (below_the_head(shape, to_small, (height, width), keep) > 0)
    return Trimap(front.astype(np.float32), unknown, prior)


def head_share(
    picture: np.ndarray,
    both: np.ndarray,
    either: np.ndarray,
    mean: np.ndarray,
    outside: np.ndarray,
    inside: np.ndarray,
    body: np.ndarray,
) -> np.ndarray:
    """How likely each pixel is head or body, (h, w) in [0, 1]: the networks' mean, and colours by what they teach.

    Colours of the head are learnt inside the outline of the skull, which hair and caps cover too, and hardly beyond
    it: what both networks take for the person, such as a plate right behind the head, would teach itself otherwise.
    """
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.intp) * BINS // 256
    index = (lab[..., 0] * BINS[1] + lab[..., 1]) * BINS[2] + lab[..., 2]
    away = outside > 0
    front = np.where(away, both * np.exp(-outside / SHELL), np.where(body, both, 1))
    back = away * (1 - either) + np.where(body, 0, np.clip((outside - 0.6) / 0.3, 0, 1) / 2)
    held = np.clip(mean, 1e-4, 1 - 1e-4)
    given = NETWORKS * np.clip(np.log(held / (1 - held)), -LOGIT, LOGIT)
    # Clothes have colours of their own, of which the skull tells nothing.
    given, told = np.where(body, 2 * given, given), np.where(body, 0.4, 1.0)
    scalp = SCALP * np.exp(-((outside / HAIR_FALL) ** 2)) * (both > 0.5) * ~body
    few = FEW / BINS.prod()  # colours that neither side has tell little
    share = mean
    for _ in range(ROUNDS):
        densities = []
        for weight in (front, back):
            counts = np.bincount(index.ravel(), weight.ravel(), BINS.prod()).reshape(BINS)
            densities.append(gaussian_filter(counts, 1.0, truncate=3) / max(float(counts.sum()), 1e-9))
        ratio = np.log((densities[0] + 0.05 * few) / (densities[1] + few)).clip(-RATIO, RATIO)
        # Beside the skull the networks are believed against colours that both sides have, not against unseen ones.
        familiar = (densities[0] / (densities[0] + few)).ravel()[index]
        share = 1 / (1 + np.exp(-given - scalp * familiar - told * ratio.ravel()[index]))
        front = np.where(inside > 0.02, np.maximum(front, share), share * np.exp(-outside / SHELL))
        back = away * (1 - share)
    return share


def below_the_head(shape: HeadShape, to_small: np.ndarray, size: tuple[int, int], keep: str) -> np.ndarray:
    """What the cut under the head leaves of a picture of `size` (h, w): float32 in [0, 1].

    The cut follows the head: across its axis where its neck ends, and, for "head", along the neck and away from it from
    the chin up, since shoulders, and hair that lies on them, begin beside it. Edges are a pixel wide.
    """
    if keep == "portrait":
        return np.ones(size, np.float32)
    pixels = float(np.sqrt(abs(np.linalg.det(to_small[:, :2])))) * shape.width
    outside, _, above = distances(shape, to_small, *size)
    kept = np.clip((above + shape.neck) * pixels + 0.5, 0, 1)
    if keep == "head":
        room = BESIDE * shape.margin + np.maximum(above + shape.chin, 0)  # wider from the chin up
        kept = kept * np.clip((room - outside) * pixels + 0.5, 0, 1)
    return kept.astype(np.float32)


def grown(mask: np.ndarray, pixels: float) -> np.ndarray:
    """A mask grown by so many pixels, or shrunk; the border of the picture is no edge of it."""
    reach = max(1, round(abs(pixels)))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    if pixels < 0:
        return cv2.erode(mask.astype(np.uint8), brush, borderValue=1) > 0
    return cv2.dilate(mask.astype(np.uint8), brush) > 0
