"""What the network learns from a landmarker: MediaPipe's points and blendshapes, and the colours at points.

The points of a face are freed of place, size and roll, which are numbers of their own, and mixed with the blendshapes,
the colours of the picture at some of them, and a few of the picture's features. The answer is added to that of the
pixels alone; where no face was found all but the features is zero.
"""

import torch
from recon4d import landmarker
from recon4d.formats.landmarks import N_DENSE
from torch import Tensor, nn

COLOURED = 6  # of the 468 points of the surface every sixth has its colour looked at
SHAPES, COLOURS = 2 * N_DENSE, 3 * (468 // COLOURED)
PLACE = 5  # middle, logarithm of the size, cosine and sine of the roll
REST = PLACE + len(landmarker.BLENDSHAPES) + 1  # the last says whether a face was found
DESCRIBED = SHAPES + COLOURS + REST
MIXED, TINTS, FEATURES, WIDTH = 96, 48, 32, 224  # widths of layers: an encoder that ships must be small


class PointBranch(nn.Module):
    """(B, features) of the backbone and (B, DESCRIBED) of faces -> (B, size), zero at the start."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.spread = nn.BatchNorm1d(SHAPES + COLOURS, affine=False, momentum=0.02)
        self.mix = nn.Linear(SHAPES, MIXED)
        self.tint = nn.Linear(COLOURS, TINTS)
        self.squeeze = nn.Linear(features, FEATURES)
        given = MIXED + TINTS + FEATURES + REST
        self.layers = nn.Sequential(nn.Linear(given, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.out = nn.Linear(WIDTH, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, described: Tensor) -> Tensor:
        seen, rest = described[:, : SHAPES + COLOURS], described[:, SHAPES + COLOURS :]
        found = rest[:, -1] > 0
        mixed = features.new_zeros(len(features), MIXED + TINTS)
        if found.sum() > 1 or (found.any() and not self.training):
            spread = self.spread(seen[found]).clamp(-5, 5)
            mixed[found] = torch.cat([self.mix(spread[:, :SHAPES]), self.tint(spread[:, SHAPES:])], 1)
        given = torch.cat([mixed, self.squeeze(features), rest], 1)
        answer: Tensor = self.out(self.layers(nn.functional.gelu(given)))
        return answer


def described(images: Tensor, points: Tensor) -> Tensor:
    """Faces as numbers for a network (B, DESCRIBED).

    That is the points about their middle, with level eyes, in units of their spread; colours at some of them; place,
    blendshapes, and 1 where there is a face. All zero where there is none.

    Args:
        images: (B, 3, S, S). points: (B, 478, 2), pixels, NaN where unknown.
    """
    answer = points.new_zeros(len(points), DESCRIBED)
    found = points.isfinite().all(2).all(1)
    if not found.any():
        return answer
    faces = points[found] / images.shape[-1] - 0.5
    across = torch.nn.functional.normalize(faces[:, landmarker.EYES[1]] - faces[:, landmarker.EYES[0]], dim=1)
    middle = faces.mean(1)
    about = faces - middle[:, None]
    spread = about.square().sum(2).mean(1).sqrt().clamp_min(1e-6)
    x, y = across.unbind(1)
    level = torch.stack([torch.stack([x, -y], 1), torch.stack([y, x], 1)], 1)
    shapes = (about @ level / spread[:, None, None]).flatten(1)
    places = 2 * faces[:, None, :468:COLOURED]
    colours = torch.nn.functional.grid_sample(images[found], places, padding_mode="border", align_corners=False)
    said = [torch.from_numpy(landmarker.blendshapes(face)) for face in points[found].cpu().numpy()]
    place = torch.cat([middle, spread.log()[:, None] + 1.5, across], 1)
    there = torch.ones_like(place[:, :1])
    answer[found] = torch.cat([shapes, colours.flatten(1), place, torch.stack(said).to(place), there], 1)
    return answer
