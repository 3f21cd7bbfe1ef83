"""The scene: a signed distance field of face and hair, two eyeballs, the material at each point, the light."""

import math
from dataclasses import dataclass

import torch
from recon4d.splat.harmonics import harmonic_basis
from torch import Tensor, nn
from torch.nn.functional import normalize

from eyeball_relight import assets, cells, hashgrid, materials, network
from eyeball_relight.config import Config

FEATURES = 15  # beside the distance
LEVEL = 2.0  # where the surface is extracted, in widths of the density; see `Field.level`


@dataclass(frozen=True, eq=False)
class Material:
    """diffuse (N, 3) linear, specular (N, 1), roughness (N, 1)."""

    diffuse: Tensor
    specular: Tensor
    roughness: Tensor


class Field(nn.Module):
    """All that is learned. Points are in bounds: the capture's unit divided by `config.data.bound`.

    Distances are the minimum over face, left eyeball, right eyeball, in that order (Han et al. 2024, equation 3).
    """

    def __init__(self, config: Config, n_views: int):
        super().__init__()
        model = config.model
        self.config = config
        self.resolution = hashgrid.resolutions(model.coarsest, model.finest, model.levels)
        shape = (model.levels, 2**model.log2_entries, model.features)
        width, encoded = model.hidden, 3 + model.levels * model.features
        self.distance_table = nn.Parameter(torch.empty(shape).uniform_(-1e-4, 1e-4))
        self.material_table = nn.Parameter(torch.empty(shape).uniform_(-1e-4, 1e-4))
        self.distance_mlp = _sphere_mlp(encoded, width, 1 + FEATURES, model.init_radius)
        self.material_mlp = nn.Sequential(nn.Linear(encoded, width), nn.ReLU(), nn.Linear(width, 5))
        self.radiance_mlp = nn.Sequential(nn.Linear(FEATURES + 22, width), nn.ReLU(), nn.Linear(width, 3))
        self.beta = nn.Parameter(torch.tensor(float(model.beta)))
        self.eye_centres = nn.Parameter(torch.zeros(2, 3))
        self.eye_radius_logit = nn.Parameter(torch.zeros(()))
        self.ambient = nn.Parameter(torch.zeros(9, 3))
        self.occlusion = nn.Parameter(torch.zeros(n_views, 9))
        if config.train.refine_pose:  # see refinement.py
            self.pose = nn.Parameter(torch.zeros(n_views, 6))
            self.focal = nn.Parameter(torch.zeros(()))
        if config.light.exposure:
            self.exposure = nn.Parameter(torch.zeros(n_views, 3))
        with torch.no_grad():
            self.ambient[0] = -4.0

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.beta.device

    @property
    def eye_radius(self) -> Tensor:
        """The eyeballs' radius in bounds, between the limits of the config."""
        low, high = (r / self.config.data.bound for r in self.config.eyes.radius)
        return low + (high - low) * self.eye_radius_logit.sigmoid()

    def ceiling(self, step: int) -> float:
        """What the density's beta is held below after so many steps."""
        model = self.config.model
        share = min(step / self.config.train.mesh_render_iter, 1.0)
        ceiling: float = max(model.beta, model.beta_max_final) ** (1 - share) * model.beta_max_final**share
        return ceiling

    def width(self, step: int) -> Tensor:
        """The density's beta: learned, kept from collapsing by a minimum and from staying wide by a falling maximum."""
        return self.width_below(self.ceiling(step))

    def width_below(self, ceiling: float | Tensor) -> Tensor:
        """`width` with a given maximum."""
        beta = self.config.model.beta_min + self.beta.abs()
        held: Tensor = beta - (beta - ceiling).detach().clamp(min=0)  # the gradient goes on where the maximum holds
        return held

    @property
    def level(self) -> float:
        """The distance, in bounds, at which the surface is extracted.

        A ray that grazes the head stays long in the density's tail and is half opaque about three widths outside the
        zero level; one that meets it head-on is so a little inside. The extracted level is between.
        """
        return LEVEL * float(self.width(self.config.train.mesh_render_iter).detach())

    def active(self, step: int) -> list[int]:
        """Resolutions of the hash grid's levels that are on after so many steps."""
        model = self.config.model
        return self.resolution[: model.init_level + step // model.level_grow_iter]

    def face(self, x: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
        """Distance (N,) to the face and features (N, FEATURES) at points x (N, 3)."""
        if self._fused(x) and not x.requires_grad:
            return network.distances(x, self.distance_table, active, self.distance_mlp, sloped=False)[:2]
        encoded = torch.cat([x, hashgrid.encode((x + 1) / 2, self.distance_table, active)], 1)
        out = self.distance_mlp(encoded)
        return out[:, 0], out[:, 1:]

    def face_gradient(self, x: Tensor, active: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Distance (N,), features (N, FEATURES) and the distance's gradient (N, 3), which is differentiable again."""
        if self._fused(x):
            return network.distances(x.detach(), self.distance_table, active, self.distance_mlp, sloped=True)
        x = x.detach().requires_grad_()
        distance, feature = self.face(x, active)
        (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=torch.is_grad_enabled())
        return distance, feature, gradient

    def _fused(self, x: Tensor) -> bool:
        return cells.usable(x, self.distance_table, self.config.model.hidden)

    def eyes(self, x: Tensor) -> Tensor:
        """Distances (N, 2) to the eyeballs; without eyeballs they are far away."""
        if not self.config.eyes.enabled:
            return torch.full((len(x), 2), 10.0, device=x.device)
        away: Tensor = (x[:, None] - self.eye_centres).norm(dim=-1)
        return away - self.eye_radius

    def eye_normals(self, x: Tensor, part: Tensor) -> Tensor:
        """Normals (N, 3) of the eyeball that part (N,) names: 1 left, 2 right."""
        centre = torch.where((part == 2)[:, None], self.eye_centres[1], self.eye_centres[0])
        return normalize(x - centre, dim=-1)

    def material(self, x: Tensor, part: Tensor, active: list[int]) -> Material:
        """Material at points x (N, 3) of face (part 0) and eyeballs (1, 2), whose gloss is fixed."""
        if self._fused(x):
            raw = materials.raw(x, self.material_table, active, self.material_mlp).sigmoid()
        else:
            encoded = torch.cat([x, hashgrid.encode((x + 1) / 2, self.material_table, active)], 1)
            raw = self.material_mlp(encoded).sigmoid()
        low, high = self.config.model.roughness
        eye = (part > 0)[:, None]
        return Material(
            raw[:, :3],
            torch.where(eye, assets.EYE_SPECULAR, raw[:, 3:4]),
            torch.where(eye, assets.EYE_ROUGHNESS, low + (high - low) * raw[:, 4:]),
        )

    def radiance(self, x: Tensor, feature: Tensor, normal: Tensor, towards: Tensor) -> Tensor:
        """Auxiliary colour (N, 3), linear, which is not explained by any light. towards: (N, 3) unit, to the eye."""
        view = harmonic_basis(3, towards)
        raw: Tensor = self.radiance_mlp(torch.cat([x, feature, normal, view], 1))
        return raw.sigmoid()


def _sphere_mlp(inputs: int, width: int, outputs: int, radius: float) -> nn.Sequential:
    """A softplus network with normalised weights whose first output is about |x| - radius (Atzmon and Lipman 2020).

    Only the first three inputs, the position, matter to begin with.
    """
    first, second, last = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.normal_(0, math.sqrt(2 / width))
            layer.bias.zero_()
        first.weight[:, 3:] = 0
        last.weight.normal_(0, 1e-2)
        last.weight[0].normal_(math.sqrt(math.pi / width), 1e-4)
        last.bias.zero_()
        last.bias[0] = -radius
    layers = [nn.utils.parametrizations.weight_norm(layer) for layer in (first, second, last)]
    return nn.Sequential(
        layers[0], nn.Softplus(network.SHARPNESS), layers[1], nn.Softplus(network.SHARPNESS), layers[2]
    )


def new_field(settings: Config, n_views: int) -> Field:
    """A field as training begins with it; the seed decides."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return Field(settings, n_views)


def eyeballs(field: Field) -> assets.Asset:
    """The field's eyeballs as surfaces of grey, in the capture's unit."""
    if not field.config.eyes.enabled:
        return {}
    bound, grey = field.config.data.bound, torch.full((2, 2, 3), 0.5)
    centres, radius = field.eye_centres.detach().cpu() * bound, float(field.eye_radius.detach()) * bound
    return {part: assets.eyeball(centre, radius, grey) for part, centre in zip(("left", "right"), centres)}
