"""KITTI's tracklet_labels.xml: what people drew around things in the sweeps of a drive.

Boost's XML: boost_serialization/tracklets/item, each with objectType, h, w, l, first_frame and poses/item, each with
tx ty tz, the middle of the box's bottom, and rx ry rz in the LiDAR's axes; the box is l long along its own x.
"""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from recon4d import InputError

from flux4d.logs import Boxes, about, text_of

LABELS = {
    "Car": "Car",
    "Van": "Car",
    "Truck": "Medium-sized Truck",
    "Pedestrian": "Pedestrian",
    "Person (sitting)": "Pedestrian",
    "Cyclist": "Bicycle",
    "Tram": "Tram / Subway",
    "Misc": "Other Vehicle - Uncommon",
}
VALUES = ("tx", "ty", "tz", "rx", "ry", "rz")


def read(path: Path, frames: list[int], offsets: Callable[[np.ndarray], np.ndarray]) -> Callable[[int], Boxes]:
    """The boxes of a sweep by its place in `frames`, the numbers of a drive's sweeps.

    Args:
        offsets: seconds (B,) from a sweep's time at which the LiDAR meets places (B, 3); they were labelled in sweeps
            as they are, so each box is where its points are.

    Raises InputError for a file that is no such XML.
    """
    data = text_of(path).encode()
    try:
        if b"<!ENTITY" in data:  # names that unfold without end
            raise ValueError("it defines entities")
        root = ElementTree.fromstring(data).find("tracklets")
        if root is None:
            raise ValueError("it has no tracklets")
        rows: dict[int, list[tuple[str, str, np.ndarray]]] = {}
        for number, track in enumerate(root.findall("item")):
            kind = _word(track, "objectType")
            size = [float(_word(track, name)) for name in ("w", "l", "h")]
            first = int(_word(track, "first_frame"))
            for i, pose in enumerate(track.findall("poses/item")):
                values = np.array([float(_word(pose, name)) for name in VALUES] + size)
                if not np.isfinite(values).all() or min(size) <= 0:
                    raise ValueError(f"values of track {number} that are no box")
                rows.setdefault(first + i, []).append((f"tracklet-{number}", LABELS.get(kind, kind), values))
    except (ElementTree.ParseError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is no file of KITTI's tracklets ({str(error)[:120]}); copy it again") from error

    def boxes(i: int) -> Boxes:
        found = rows.get(frames[i], [])
        values = np.array([row[2] for row in found]).reshape(-1, 9)
        pose = np.tile(np.eye(4), (len(found), 1, 1))
        pose[:, :3, :3] = about(2, values[:, 5]) @ about(1, values[:, 4]) @ about(0, values[:, 3])
        pose[:, :3, 3] = values[:, :3] + pose[:, :3, 2] * values[:, 8:] / 2  # from the bottom to the centre
        names, labels = (np.array([row[k] for row in found], object) for k in (0, 1))
        return Boxes(names, labels, values[:, 6:], pose, offsets(pose[:, :3, 3]))

    return boxes


def _word(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"{element.tag} without {name}")
    return text.strip()
