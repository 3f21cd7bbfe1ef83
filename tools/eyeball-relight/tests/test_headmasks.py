"""Outlines of eyes from landmarks of several layouts, and which of them follow the picture."""

import numpy as np
from eyeball_relight import headmasks
from recon4d.formats.landmarks import IBUG


def dense():
    """478 points whose eyes are circles about (40, 50), the person's left, and (80, 50)."""
    points = np.random.default_rng(0).uniform(0, 10, (478, 2))
    for ring, middle in zip(headmasks.RINGS, ((40, 50), (80, 50))):
        angle = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)
        points[list(ring)] = np.array(middle) + 5 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points


def test_dense_and_ibug_outlines_are_of_the_same_eyes():
    points = dense()
    full, few = headmasks.eye_outlines(points), headmasks.eye_outlines(points[IBUG])
    for a, b, middle in zip(full, few, ((40, 50), (80, 50))):
        assert np.abs(a.mean(0) - middle).max() < 0.5 and np.abs(b.mean(0) - middle).max() < 2
        assert np.linalg.norm(b - np.array(middle), axis=1).max() < 7
    assert headmasks.eye_outlines(None) is None
    assert headmasks.eye_outlines(np.full((68, 2), np.nan)) is None


def test_small_eyes_keep_their_outlines():
    pictures = np.zeros((3, 40, 40, 3), np.uint8)
    masks = np.zeros((3, 40, 40), bool)
    masks[:, 10:14, 10:16] = True
    assert headmasks.snapped(pictures, masks) is masks
    assert headmasks.snapped(pictures, np.zeros_like(masks)).sum() == 0


def test_large_eyes_follow_their_colours():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :80]
    inside = ((x - 40) / 15) ** 2 + ((y - 30) / 8) ** 2 < 1
    pictures = np.where(inside[..., None], (210, 200, 190), (120, 80, 60)) + rng.normal(0, 3, (4, 60, 80, 3))
    moved = np.stack([np.roll(inside, shift, 1) for shift in (-2, -1, 1, 2)])
    found = headmasks.snapped(pictures.clip(0, 255).astype(np.uint8), moved)
    before, after = ((m & inside).sum() / (m | inside).sum() for m in (moved, found))
    assert after > before and after > 0.93
