"""The two networks that find people in pictures: U2NETP (what is salient) and MediaPipe's selfie segmentation.

Neither is enough alone. U2NETP (Qin et al. 2020, U2-Net) finds hair and caps, but also a plate behind the head; selfie
segmentation knows people, but coarsely, and takes a hundredth of the time.
"""

import functools
from typing import Any

import cv2
import numpy as np
from recon4d import InputError, shipped

SALIENT = "u2netp.onnx"
PERSON = "selfie_segmentation.tflite"
INSTEAD = "--method grabcut"
SHA256 = {
    SALIENT: "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    PERSON: "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
}
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SALIENT_SIDE, PERSON_SIDE = 320, 256  # pixels that they see


def salient(image: np.ndarray) -> np.ndarray:
    """How salient each pixel of RGB uint8 (H, W, 3) is, in [0, 1]: (320, 320) float32, by U2NETP on this thread."""
    small = cv2.resize(image, (SALIENT_SIDE, SALIENT_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    small /= max(float(small.max()), 1.0)  # as its makers do
    normal = (small - MEAN) / DEVIATION
    network, given, answer = _onnx()
    values = network.run([answer], {given: np.ascontiguousarray(normal.transpose(2, 0, 1)[None])})[0][0, 0]
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-6)


def person(image: np.ndarray) -> np.ndarray:
    """How surely each pixel of RGB uint8 (H, W, 3) is a person: (256, 256) float32 in [0, 1], on this thread."""
    shrinks = min(image.shape[:2]) > PERSON_SIDE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(image, (PERSON_SIDE, PERSON_SIDE), interpolation=how).astype(np.float32) / 255
    network, given, answer = _tflite()
    network.set_tensor(given, small[None])
    network.invoke()
    values: np.ndarray = network.get_tensor(answer)[0, :, :, 0].copy()
    return values


def person_around(picture: np.ndarray, middle: np.ndarray, reach: float, both: bool) -> np.ndarray:
    """`person` at the size of RGB uint8 (h, w, 3): the mean of looks whose errors differ, (h, w) float32.

    At the whole, and closer, mirrored, at `reach` pixels around `middle` (2,); with `both` also at the whole mirrored
    and at the close part as it is.
    """
    height, width = picture.shape[:2]
    total, looks = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    low = np.floor(np.clip(middle - reach, 0, [width - 1, height - 1])).astype(int)
    high = np.ceil(np.clip(middle + reach, low + 1, [width, height])).astype(int)
    close = np.s_[low[1] : high[1], low[0] : high[0]]
    everything = np.s_[:, :]
    chosen = [(everything, False), (close, True)] + ([(everything, True), (close, False)] if both else [])
    for part, mirrored in chosen:
        seen = np.ascontiguousarray(picture[part][:, :: -1 if mirrored else 1])
        answer = np.ascontiguousarray(person(seen)[:, :: -1 if mirrored else 1])
        total[part] += cv2.resize(answer, (seen.shape[1], seen.shape[0]), interpolation=cv2.INTER_LINEAR)
        looks[part] += 1
    return total / looks


def check(method: str) -> None:
    """Raise InputError where a network that a method needs is missing or another one, or does not run here."""
    _tflite()
    if method == "matting":
        _onnx()


def _asset(name: str) -> bytes:
    return shipped.read("prep_faces", name, SHA256[name], INSTEAD)


@functools.cache
def _onnx() -> tuple[Any, str, str]:
    """U2NETP, and what its input and its finest answer are called."""
    try:
        import onnxruntime
    except Exception as error:  # not installed, or its library does not load on this machine
        raise InputError(
            f"--method matting needs onnxruntime, which does not load here ({error}); install it, or use --method "
            "grabcut"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # processes share the cores
    network = onnxruntime.InferenceSession(_asset(SALIENT), options, providers=["CPUExecutionProvider"])
    return network, network.get_inputs()[0].name, network.get_outputs()[0].name


@functools.cache
def _tflite() -> tuple[Any, int, int]:
    """Selfie segmentation, and the numbers of its input and answer."""
    network = shipped.tflite(_asset(PERSON), INSTEAD)
    return network, network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]
