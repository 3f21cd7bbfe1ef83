"""Where the eyes look, from the images: a dark disc on a bright ball, looked for between the lids of the tracked head.

Every pixel that shows an eyeball is a place on a sphere. For a direction of gaze each place has an angle to the optical
axis, and the model of its brightness is a step at the rim of the iris. How well that correlates with the pixels, for a
grid of directions and both eyes together, is the likelihood of a direction; the measurement is its mean and covariance.
"""

import numpy as np
import torch
from recon4d import mesh, threads
from recon4d.cameras import Camera
from recon4d.formats.track import Track
from recon4d.head import HeadModel
from torch import Tensor

from flame_encoder.tracker.photometric import Windows
from flame_encoder.tracker.points import eye_radius, eye_rotation

IRIS = 0.0059  # radius, metres
RIM = 0.06  # softness of the rim, radians
REACH = np.radians([40.0, 30.0])  # yaw, pitch that are looked through
STEP = np.radians(2.0)
INDEPENDENT = 0.1  # share of pixels that count: neighbours are alike
FEWEST = 12  # pixels of an eye


def grid() -> Tensor:
    """(C, 2) directions of gaze, yaw and pitch."""
    yaw, pitch = (torch.arange(-round(r / STEP), round(r / STEP) + 1) * STEP for r in REACH)
    return torch.cartesian_prod(yaw.float(), pitch.float())


def measure(head: HeadModel, windows: Windows, track: Track, vertices: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Gaze (N, 2), yaw and pitch, and the inverses (N, 2, 2) of its covariances; the prior's where no eye is in sight.

    Args:
        vertices: (N, V, 3) of the track, in camera space.
        sigma: of the prior about straight ahead, radians.
    """
    directions = grid()
    axes = eye_rotation(directions)[:, :, 2]  # in the head's axes
    rim = np.arcsin(IRIS / eye_radius(head))
    prior = -0.5 * (directions / sigma).square().sum(1)
    means, information = torch.zeros(len(vertices), 2), sigma**-2 * torch.eye(2).repeat(len(vertices), 1, 1)
    balls = [(head.weights[:, joint] > 0.99).nonzero()[:, 0] for joint in (3, 4)]
    eyes = torch.zeros(len(head.faces), dtype=torch.long)
    for number, ball in enumerate(balls, 1):
        eyes[torch.isin(head.faces, ball).all(1)] = number
    size = windows.images.shape[1]

    def look(i: int) -> None:
        K = windows.K(track.K, i)
        rast = mesh.rasterize(Camera(K, torch.eye(4), size, size).clip(vertices[i : i + 1]), head.faces, (size, size))
        seen = torch.where(rast.mask[0], eyes[rast.tri_id[0].clamp_min(0).long()], 0)
        grey = torch.from_numpy(windows.images[i].astype(np.float32).mean(-1))
        likelihood, pixels = torch.zeros(len(directions)), 0
        for number, ball in enumerate(balls, 1):
            row, column = (seen == number).nonzero(as_tuple=True)
            if len(row) < FEWEST:
                continue
            rays = torch.stack([column + 0.5, row + 0.5, torch.ones(len(row))], 1) @ torch.linalg.inv(K).T
            places = _on_sphere(rays, vertices[i, ball]) @ torch.from_numpy(track.R[i]).float()
            angles = torch.arccos((axes @ places.T).clamp(-1, 1))
            model = torch.sigmoid((angles - rim) / RIM)
            likelihood += -0.5 * INDEPENDENT * len(row) * torch.log(1 - _correlation(model, grey[row, column]) ** 2)
            pixels += len(row)
        if not pixels:
            return
        weight = torch.softmax(likelihood + prior, 0)
        means[i] = weight @ directions
        spread = directions - means[i]
        information[i] = torch.linalg.inv((spread * weight[:, None]).T @ spread + STEP**2 / 12 * torch.eye(2))

    threads.share(look, len(vertices))
    return means, information


def _on_sphere(rays: Tensor, ball: Tensor) -> Tensor:
    """Unit vectors (n, 3) from the centre of a ball of vertices to where rays (n, 3) from the origin meet it."""
    A = torch.cat([2 * ball, torch.ones(len(ball), 1)], 1)
    *centre, rest = torch.linalg.lstsq(A, ball.square().sum(1)).solution
    centre = torch.stack(centre)
    radius2 = rest + centre @ centre
    rays = torch.nn.functional.normalize(rays, dim=1)
    along = rays @ centre
    half = (along**2 - centre @ centre + radius2).clamp_min(0).sqrt()
    return torch.nn.functional.normalize(rays * (along - half)[:, None] - centre, dim=1)


def _correlation(model: Tensor, values: Tensor) -> Tensor:
    """Correlation (C,), from 0 to 0.99, of C models (C, n) with values (n,); against the model counts as none."""
    model, values = model - model.mean(1, keepdim=True), values - values.mean()
    product = model @ values
    answer: Tensor = (product / (model.norm(dim=1) * values.norm()).clamp_min(1e-6)).clamp(0, 0.99)
    return answer
