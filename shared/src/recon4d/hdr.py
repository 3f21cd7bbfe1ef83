"""High dynamic range and wide gamut to sRGB: the signals of BT.2100 (PQ and HLG) and BT.2020 and P3 colours.

Formulas: ITU-R BT.2100-2, tables 4 (PQ) and 5 (HLG, its OOTF for a display of 1,000 cd/m2); white on paper is 203
cd/m2, ITU-R BT.2408-7. Transfer and primaries are numbered as in ITU-T H.273, which FFmpeg and HEIF follow.
"""

import struct
from functools import lru_cache

import cv2
import numpy as np

PQ, HLG = 16, 18
NAMES = {PQ: "PQ", HLG: "HLG"}
WHITE = 203.0  # cd/m2 of what becomes white
PEAK = 1000.0 / WHITE  # what becomes the brightest white; all above is the same
KNEE = 0.8  # linear; below it, where skin is, nothing is compressed

_2020 = [[1.660491, -0.587641, -0.07285], [-0.12455, 1.1329, -0.008349], [-0.018151, -0.100579, 1.11873]]
_P3 = [[1.22494, -0.22494, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]
# Linear RGB of BT.2020 (BT.2087-0) and of P3 with D65 to that of sRGB.
_TO_SRGB = {9: np.array(_2020, np.float32), 12: np.array(_P3, np.float32)}
_LUMA = np.array([[0.2627, 0.6780, 0.0593]], np.float32)  # BT.2020's


def needed(transfer: int, primaries: int) -> bool:
    """Whether a picture with these code points is not sRGB to the eye: PQ, HLG, BT.2020 or P3."""
    return transfer in NAMES or primaries in _TO_SRGB


def to_srgb(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """(H, W, 3) uint16 RGB of full range (65535 is 1), or uint8, to (H, W, 3) uint8 sRGB.

    Colours up to `KNEE` of white are kept as they are; those above, up to 1,000 cd/m2, share what is left, their
    ratios kept. Other transfers than PQ and HLG are taken for sRGB's, which is how unmanaged video is shown.
    """
    decode, encode = _linear(transfer), _srgb()
    most = (PEAK - KNEE) / (1 - KNEE)
    matrix = _TO_SRGB.get(9 if transfer in NAMES and primaries == 2 else primaries)
    out = np.empty(signal.shape, np.uint8)
    for top in range(0, len(signal), 64):  # what a band needs stays in the cache
        band = signal[top : top + 64]
        light = decode[band >> 4 if band.dtype == np.uint16 else band.astype(np.uint16) * 257 >> 4]
        if transfer == HLG:
            light *= np.maximum(cv2.transform(light, _LUMA), 1e-6)[..., None] ** np.float32(0.2) * np.float32(PEAK)
        if matrix is not None:
            light = cv2.transform(light, matrix)
        if transfer in NAMES:
            brightest = light.max(-1)
            over = np.maximum((np.minimum(brightest, PEAK) - KNEE) / (1 - KNEE), 0)
            # Reinhard et al. 2002, eq. 4: slope 1 at the knee, 1 at the peak.
            bent = KNEE + (1 - KNEE) * over * (1 + over / most**2) / (1 + over)
            light *= np.where(over > 0, bent / np.maximum(brightest, KNEE), 1)[..., None]
        out[top : top + 64] = encode[np.rint(np.clip(light, 0, 1) * (len(encode) - 1)).astype(np.uint16)]
    return out


def of_heif(content: bytes) -> tuple[int, int] | None:
    """Transfer and primaries of a HEIC or AVIF file that is PQ or HLG; None for others.

    A file with a gain map has one part of each kind, and the one that is shown is sRGB: all must be HDR.
    """
    found = {struct.unpack(">HH", part[:4]) for part in content.split(b"colrnclx")[1:] if len(part) >= 4}
    parts = {(int(transfer), int(primaries)) for primaries, transfer in found}
    return parts.pop() if len(parts) == 1 and next(iter(parts))[0] in NAMES else None


@lru_cache(maxsize=4)
def _linear(transfer: int) -> np.ndarray:
    """(4096,) float32: light of a signal; PQ's in units of `WHITE`, HLG's of the scene."""
    signal = np.arange(4096) / 4095
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10_000 / WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _srgb() -> np.ndarray:
    """(16384,) uint8: sRGB of linear light (IEC 61966-2-1)."""
    light = np.arange(16384) / 16383
    values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    encoded: np.ndarray = np.rint(values * 255).astype(np.uint8)
    return encoded
