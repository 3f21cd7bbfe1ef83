"""Mattes that move with the head: what neighbouring frames say of a frame, moved there by the head and by flow."""

from dataclasses import dataclass

import cv2
import numpy as np

from prep_faces.affine import compose, head_motion, invert, warp

FLOW_SIDE = 192  # pixels of the longer side of the pictures that flow is found in
UNLIKE = 14.0  # grey levels by which a pixel may differ from where the flow says that it was


@dataclass(frozen=True, eq=False)
class View:
    """A picture of the head in one frame."""

    grey: np.ndarray  # (h, w) uint8
    to_small: np.ndarray  # (2, 3) image pixels to those of the picture
    anchors: np.ndarray  # (k, 2) image pixels, points that move with the skull, the same in all frames

    def motion(self, other: "View") -> np.ndarray:
        """(2, 3): pixels of another frame's picture to those of this one, as the head moves."""
        moved = head_motion(other.anchors, self.anchors)
        return compose(self.to_small, compose(moved, invert(other.to_small)))


def carried(values: np.ndarray, there: View, here: View) -> tuple[np.ndarray, np.ndarray]:
    """`values` (h, w) float32 of the picture `there` moved to `here`, and where that can be believed, (h, w) bool.

    First as the head moves, then by the optical flow of what is left (Kroeger et al. 2016, dense inverse search).
    """
    height, width = here.grey.shape
    motion = here.motion(there)
    moved = warp(values, motion, height, width)
    grey = warp(there.grey, motion, height, width)
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (here.grey, grey)]
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow = finder.calc(small[0], small[1], None)  # type: ignore[call-overload] # OpenCV makes one where there is none
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
    flow = flow * np.array([width / size[0], height / size[1]], np.float32)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = x + flow[..., 0], y + flow[..., 1]
    moved = cv2.remap(moved, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    grey = cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    apart = cv2.blur(cv2.absdiff(grey, here.grey).astype(np.float32), (5, 5))
    inside = warp(np.ones(there.grey.shape, np.float32), motion, height, width)
    return moved, (apart < UNLIKE) & (inside > 0.99)


def agreed(own: np.ndarray, others: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The mean of the middle half of what a frame and its neighbours say, (h, w); each other with where it counts.

    An outline that moves steadily stays where it is, and what shows in a minority of frames drops out.
    """
    if not others:
        return own
    stack = np.stack([own, *(np.where(sure, values, own) for values, sure in others)])
    cut = len(stack) // 4
    middle: np.ndarray
    if cut == 1:  # without a sort, which takes most of the time
        middle = (stack.sum(0) - stack.min(0) - stack.max(0)) / (len(stack) - 2)
    else:
        stack.sort(axis=0)
        middle = stack[cut : len(stack) - cut].mean(0)
    return middle
