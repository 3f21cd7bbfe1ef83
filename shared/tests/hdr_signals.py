"""The signals of BT.2100, written as the standard has them: what HDR pictures of tests are made with."""

import numpy as np


def pq(light):
    """PQ's signal of light in cd/m2 (BT.2100-2, table 4)."""
    power = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light):
    """HLG's signal of light (..., 3) in cd/m2 on a display of 1,000 (BT.2100-2, table 5: inverse OOTF, OETF)."""
    scene = light / 1000 * np.maximum(light @ [0.2627, 0.678, 0.0593] / 1000, 1e-9)[..., None] ** (1 / 1.2 - 1)
    above = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), above)
