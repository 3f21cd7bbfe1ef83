"""Metashape's Export Cameras (XML): sensors with their calibration, and the pose of each camera.

A camera's transform is camera-to-chunk with OpenCV's axes. Formulas: Metashape's manual, appendix "Camera models": its
p1 and p2 are OpenCV's p2 and p1, k4 is a fourth radial term, b1 and b2 are aspect and skew, and cx and cy count from
the middle of the picture. The chunk's own transform is left out; it is a similarity that moves all cameras alike.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from recon4d.files import InputError
from recon4d.formats.shot import Shot, intrinsics
from recon4d.lenses import Lens, LensCamera

_TERMS = {"f", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "b1", "b2"}
_FIRST = ("adjusted", "initial")  # the calibration that is used, where there are several


def read(path: str | Path, note: Callable[[str], None]) -> list[Shot]:
    """The aligned, enabled cameras of a file, of its largest component; `note` is told what is left out.

    Raises:
        InputError: broken, a sensor without calibration, a kind of sensor other than frame and fisheye, terms of a lens
            that are not Metashape's.
    """
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
        chunks = [chunk for chunk in root.iter("chunk") if chunk.find(".//camera/transform") is not None]
        if len(chunks) > 1:
            raise InputError(f"{path} has cameras of {len(chunks)} chunks, whose spaces differ; export one")
        top = chunks[0] if chunks else root
        sensors = {sensor.get("id", ""): sensor for sensor in top.iter("sensor")}
        placed = _placed(list(top.iter("camera")), note)
        used = {camera.get("sensor_id", next(iter(sensors), "")) for camera in placed}
        cameras = {number: _calibrated(sensors[number], path) for number in used}
        first = next(iter(sensors), "")
        return [_shot(camera, cameras[camera.get("sensor_id", first)]) for camera in placed]
    except (ElementTree.ParseError, AttributeError, KeyError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole XML file of Metashape's cameras ({error}); export it again") from error


def _off(camera: Element) -> bool:
    return camera.get("enabled", "true").lower() in ("false", "0")


def _placed(cameras: list[Element], note: Callable[[str], None]) -> list[Element]:
    """The cameras to use, and a note on the others. Cameras of groups are among them, wherever they stand."""
    on = [camera for camera in cameras if not _off(camera)]
    found = [camera for camera in on if camera.findtext("transform")]
    slaves = [c for c in on if c.get("master_id") not in (None, c.get("id")) and c.find("transform") is None]
    for count, what in (
        (len(cameras) - len(on), "are disabled"),
        (len(slaves), "stand in a rig that gives them no pose of their own"),
        (len(on) - len(found) - len(slaves), "are not aligned"),
    ):
        if count:
            note(f"{count} of {len(cameras)} cameras {what}: left out")
    parts = Counter(camera.get("component_id") for camera in found)
    if len(parts) > 1:
        largest = parts.most_common(1)[0][0]
        note(f"{len(found) - parts[largest]} cameras of {len(parts) - 1} smaller components are left out")
        found = [camera for camera in found if camera.get("component_id") == largest]
    return found


def _shot(camera: Element, seen_by: LensCamera) -> Shot:
    to_world = np.array(str(camera.findtext("transform")).split(), float).reshape(4, 4)
    return Shot(camera.attrib["label"], np.linalg.inv(to_world), seen_by)


def _calibrated(sensor: Element, path: Path) -> LensCamera:
    name = f"sensor {sensor.get('label') or sensor.get('id', '')}".strip()
    found = {calibration.get("class", "adjusted"): calibration for calibration in sensor.findall("calibration")}
    calibration = next((found[kind] for kind in _FIRST if kind in found), None)
    if calibration is None:
        raise InputError(f"{path}: {name} has no calibration; align the pictures and export the cameras again")
    kind = calibration.get("type") or sensor.get("type") or "frame"
    if kind not in ("frame", "fisheye"):
        raise InputError(f"{path}: {name} is {kind}; only frame and fisheye cameras are read")
    size = {key: int(v) for part in (sensor, calibration) for at in part.findall("resolution") for key, v in at.items()}
    t = {part.tag: float(part.text) for part in calibration if part.text and part.text.strip() and not len(part)}
    unknown = sorted(key for key, value in t.items() if key not in _TERMS and value)
    if unknown:
        terms = ", ".join(unknown)
        raise InputError(f"{path}: {name} has {terms}; calibrate without, and export from Metashape 1.2 or newer")
    width, height = size["width"], size["height"]
    k1, k2, k3, k4, p1, p2, b1, b2 = (t.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2", "b1", "b2"))
    K = intrinsics(t["f"] + b1, t["f"], width / 2 + t.get("cx", 0.0), height / 2 + t.get("cy", 0.0), b2)
    return LensCamera(K, width, height, Lens((k1, k2, k3, k4), (), (p2, p1), fisheye=kind == "fisheye"))
