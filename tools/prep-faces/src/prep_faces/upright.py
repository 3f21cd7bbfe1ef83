"""A decoded frame as a player shows it: sRGB, square pixels, upright."""

import contextlib
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace
from recon4d import hdr, images


def upright(frame: Any, stream: Any) -> np.ndarray:
    """The frame as RGB, squeezed to square pixels, rotated and mirrored as its display matrix says."""
    image = _rgb(frame)
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        image = images.resize(image, max(1, round(image.shape[1] * float(aspect))), image.shape[0])
    with contextlib.suppress(KeyError):
        # Nine 32-bit numbers, a b u c d v x y w: a pixel (p, q) goes to (a p + c q, b p + d q) (ISO 14496-12, 8.3.2).
        matrix = np.frombuffer(bytes(frame.side_data[SideDataType.DISPLAYMATRIX]), "<i4")[:9]
        (a, b), (c, d) = np.sign(np.rint(matrix[[[0, 1], [3, 4]]] / 65536)).astype(int)
        if abs(a * d - b * c) != 1:  # not a quarter turn: nothing a grid of pixels can follow
            return image
        if a == 0:
            image = image.transpose(1, 0, 2)
            flip_x, flip_y = c < 0, b < 0
        else:
            flip_x, flip_y = a < 0, d < 0
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(image)


def _rgb(frame: Any) -> np.ndarray:
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    # Swscale takes untagged video for BT.601; players take it for BT.709 from 720 lines up.
    space: Any = "itu709" if frame.colorspace == 2 and frame.height >= 720 else None
    if not hdr.needed(transfer, primaries):
        plain: np.ndarray = frame.reformat(format="rgb24", src_colorspace=space).to_ndarray()
        return plain
    if frame.colorspace == 2 and primaries in (2, 9):
        space = Colorspace.BT2020
    return hdr.to_srgb(frame.reformat(format="rgb48le", src_colorspace=space).to_ndarray(), transfer, primaries)
