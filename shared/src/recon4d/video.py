"""MP4 files of frames, H.264 through PyAV."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from recon4d.files import InputError, atomic_path


def write_mp4(
    path: str | Path, frames: Iterable[np.ndarray], fps: float, quality: int = 16, preset: str = "medium"
) -> int:
    """Write RGB uint8 frames (H, W, 3) as H.264, atomically; the number of frames.

    Odd sizes lose their last row or column: 4:2:0 colour needs even ones.

    Raises InputError, and writes nothing, when there is no frame.

    Args:
        quality: the constant rate factor; 0 is lossless, 16 looks lossless, 23 is usual.
        preset: x264's, of speed against size.
    """
    count = 0
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": preset}
        for frame in frames:
            height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
            if count == 0:
                stream.width, stream.height = width, height
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
            count += 1
        if count == 0:
            raise InputError(f"{path} would have no frames")
        container.mux(stream.encode(None))
    return count
