"""Sensors of a car that drives through synthetic streets: PandaSet's, and others' beam patterns and cameras."""

from dataclasses import dataclass

import numpy as np

# Degrees counterclockwise from forward, by PandaSet's names
CAMERAS = {
    "front_camera": 0.0,
    "front_left_camera": 50.0,
    "left_camera": 100.0,
    "back_camera": 180.0,
    "right_camera": -100.0,
    "front_right_camera": -50.0,
}


@dataclass(frozen=True)
class Rig:
    """beams: elevations in degrees. forward: whether there is a forward LiDAR too. lidar_height, camera_height,
    camera_forward: metres. focal, aspect: focal length and height of the image by its width. noise: of a distance,
    metres. dropout: share of points that do not return. image_noise: of a colour in [0, 1]."""

    beams: tuple[float, ...]
    forward: bool = False
    lidar_height: float = 1.9
    camera_height: float = 1.55
    camera_forward: float = 0.5
    focal: float = 0.6
    aspect: float = 9 / 16
    noise: float = 0.01
    dropout: float = 0.0
    image_noise: float = 0.0

    def elevations(self) -> np.ndarray:
        """(B,) radians."""
        return np.radians(self.beams)


# A Pandar64, every sixth of a degree from -6 to +2, sparse above and below; the front camera's 1970 pixels of 1920
PANDAR64 = (-25.0, -19.0, *map(float, range(-14, -6)), *np.linspace(-6, 2, 49).tolist(), 3.0, 5.0, 8.0, 11.0, 15.0)
PANDASET = Rig(PANDAR64, forward=True, focal=1970.0 / 1920.0)

BEAMS = (
    PANDAR64,
    tuple(np.linspace(-24.8, 2.0, 64).tolist()),  # HDL-64E
    tuple(np.linspace(-30.67, 10.67, 32).tolist()),  # HDL-32E
    tuple(np.linspace(-17.6, 2.4, 64).tolist()),  # Waymo's
    tuple(np.linspace(-22.5, 22.5, 64).tolist()),  # an Ouster
    (*np.linspace(-25, 15, 32).tolist(), *np.linspace(-25, 15, 32).tolist()),  # two VLP-32 as Argoverse's
)


def random_rig(seed: int) -> Rig:
    """Sensors of a random car."""
    rng = np.random.default_rng((seed, 78))
    beams = BEAMS[int(rng.integers(len(BEAMS)))]
    return Rig(
        tuple(float(b) for b in np.sort(np.array(beams) + rng.normal(0, 0.3) + rng.normal(0, 0.02, len(beams)))),
        forward=beams is PANDAR64,
        lidar_height=rng.uniform(1.6, 2.1),
        camera_height=rng.uniform(1.35, 1.8),
        camera_forward=rng.uniform(0.1, 1.5),
        focal=rng.uniform(0.5, 1.05),
        aspect=float(rng.choice([9 / 16, 0.3, 0.4, 2 / 3, 0.75], p=[0.35, 0.25, 0.15, 0.15, 0.1])),
        noise=rng.uniform(0.005, 0.03),
        dropout=float(rng.choice([0.0, rng.uniform(0, 0.2)])),
        image_noise=rng.uniform(0, 0.025),
    )
