"""Normals by how bright a point is in all pictures, and a surface bent until it has them.

Under a flash at the camera a point is as bright as its normal's cosine to the camera, from each side another one. So
pictures of one point from many sides give its normal, albedo and gloss without its neighbours (photometric stereo,
Woodham 1980, of many views: Hernandez et al. 2008). Volume rendering sees some thousand pixels a step and fits them
through a field: what many pictures tell of a few degrees it does not reach. Here all of them are taken together.
"""

from dataclasses import dataclass

import torch
from recon4d import mesh
from recon4d.cameras import Camera
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d, normalize

from eyeball_relight import brdf, surface
from eyeball_relight.captures import Capture
from eyeball_relight.field import Field, eyeballs
from eyeball_relight.refinement import gains

POINTS = 30_000  # on the surface, at most
CHUNK = 2048
FEWEST = 8  # pictures that tell a normal
GRAZING = 0.25  # cosine from which a picture tells something of a point
SATURATED = 0.97  # of a picture's values
BEHIND = 0.012  # bounds; farther behind what a picture shows a point is hidden
ROUNDS = 8
NOISE = 0.012  # of a picture's values, from which a difference counts less
TURN, GLOSS = 0.15, 0.5  # radians and specular that a point is likely to be off by what training has found
STEPS, BATCH = 300, 4096
RATE = 1e-3
HELD, SLOPE = 0.02, 0.1  # weight of where the surface was, and of the distance's slope being 1
KEPT = 0.3  # weight of a normal that pictures do not tell
STRAY = 0.004  # bounds; how far the surface is likely to move


@dataclass(frozen=True, eq=False)
class Told:
    """M points of the surface. position: (M, 3), bounds. normal: (M, 3) unit; where pictures do not tell it, sure
    (M,) is False, what it was."""

    position: Tensor
    normal: Tensor
    sure: Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """M points in V pictures. value: (M, V, 3). fine: (M, V), 1 where a picture shows the point. away: (M, V, 3), to
    the camera, in the capture's unit. gain: (V, 3)."""

    value: Tensor
    fine: Tensor
    away: Tensor
    gain: Tensor


def refine(field: Field, active: list[int], capture: Capture, intensity: Tensor, seed: int) -> int:
    """Bend the field's face, in place, until its normals are what the pictures say; how many points they told of.

    Args:
        capture: with cameras as training has corrected them. intensity: (3,) of the flash.
    """
    told = normals_told(field, active, capture, intensity, seed)
    if bool(told.sure.any()):
        bend(field, active, told, seed)
    return int(told.sure.sum())


def normals_told(field: Field, active: list[int], capture: Capture, intensity: Tensor, seed: int) -> Told:
    """Normals of points on the extracted surface by all training pictures. Args as `refine`."""
    bound = field.config.data.bound
    vertices, faces = surface.extract(field, active, field.config.train.mesh_resolution, field.level)
    normal = surface.normals_of(field, vertices, active)
    seen = look(field, capture, vertices, faces, normal)
    order = torch.randperm(len(vertices), generator=torch.Generator().manual_seed(seed))
    shown = seen.fine[order].sum(1) >= FEWEST
    rest, some = order[~shown][:POINTS], order[shown][:POINTS]
    kept, position, normal = (vertices[rest], normal[rest]), vertices[some], normal[some]
    seen = Seen(seen.value[some], seen.fine[some], seen.away[some], seen.gain)
    found: list[Tensor] = []
    sure: list[Tensor] = []
    for part in torch.arange(len(position)).split(CHUNK):
        zero = torch.zeros(len(part), dtype=torch.long)
        with torch.no_grad():
            start = field.material((position[part] / bound).to(field.device), zero.to(field.device), active)
        gloss = torch.cat([start.specular, start.roughness], 1).cpu()
        piece = Seen(seen.value[part], seen.fine[part], seen.away[part], seen.gain)
        one, good = solve(field, piece, normal[part], start.diffuse.cpu(), gloss, intensity.cpu())
        found.append(torch.where(good[:, None], one, normal[part]))
        sure.append(good)
    sure = [*sure, torch.zeros(len(rest), dtype=torch.bool)]
    return Told(torch.cat([position, kept[0]]) / bound, torch.cat([*found, kept[1]]), torch.cat(sure))


def look(field: Field, capture: Capture, vertices: Tensor, faces: Tensor, normal: Tensor) -> Seen:
    """The vertices (M, 3) of a mesh, with normals (M, 3), as the training pictures show them."""
    balls = list(eyeballs(field).values())
    every, triangles = vertices, faces
    for ball in balls:
        triangles = torch.cat([triangles, ball.faces + len(every)])
        every = torch.cat([every, ball.vertices])
    values, fine, away = [], [], []
    for i in capture.trained:
        view = capture.view(i)
        at, depth = view.project(vertices)
        near = nearest(view, every, triangles)
        # an outline beside the point is in its pixel too
        near = -max_pool2d(-near[None, None], 3, 1, 1)[0, 0]
        column, row = at[:, 0].long(), at[:, 1].long()
        inside = (column >= 0) & (column < view.width) & (row >= 0) & (row < view.height)
        column, row = column.clamp(0, view.width - 1), row.clamp(0, view.height - 1)
        grid = (at / torch.tensor([view.width, view.height]) * 2 - 1).view(1, 1, -1, 2)
        layers = torch.stack([capture.mask[i], 255 - capture.hair[i]])
        planes = torch.cat([capture.image[i].permute(2, 0, 1), layers]).float() / 255
        cut = grid_sample(planes[None], grid, align_corners=False)[0, :, 0].T
        towards = view.center - vertices
        cosine = (normalize(towards, dim=1) * normal).sum(1)
        good = inside & (depth - near[row, column] < BEHIND * field.config.data.bound) & (cosine > GRAZING)
        good &= (cut[:, 3:] > 0.99).all(1) & (cut[:, :3].amax(1) < SATURATED)
        values.append(cut[:, :3])
        fine.append(good.float())
        away.append(towards)
    gain = gains(field).detach().cpu()[capture.trained]
    return Seen(torch.stack(values, 1), torch.stack(fine, 1), torch.stack(away, 1), gain)


def nearest(view: Camera, vertices: Tensor, faces: Tensor) -> Tensor:
    """Depth (H, W) of a mesh as a camera sees it, 0 where it sees none."""
    rast = mesh.rasterize(view.clip(vertices[None]), faces, (view.height, view.width))
    depth = vertices @ view.world_to_camera[2, :3] + view.world_to_camera[2, 3]
    found: Tensor = mesh.interpolate(depth[None, :, None].contiguous(), rast, faces)[0, ..., 0]
    return found


def solve(
    field: Field, seen: Seen, normal: Tensor, diffuse: Tensor, gloss: Tensor, intensity: Tensor
) -> tuple[Tensor, Tensor]:
    """Normals (M, 3) that explain best what is seen, and which of them (M,) the pictures told.

    Gauss and Newton's steps in two turns, the logarithm of three albedos and specular, with Cauchy's weights; what is
    sought is likely to be near what training has found.

    Args:
        normal, diffuse: (M, 3) and gloss (M, 2), specular and roughness, to begin with.
    """
    square = seen.away.square().sum(-1, keepdim=True)
    towards = seen.away / square.sqrt()
    flash = seen.gain * intensity / square
    scale, ambient = field.config.light.ambient_scale, field.ambient.detach().cpu()
    first, rough = normal, gloss[:, None, 1:]
    turned, albedo, shine = torch.zeros(len(normal), 2), diffuse.clamp(min=1e-3).log(), gloss[:, :1].clone()
    begin = shine.clone()
    side = normalize(torch.linalg.cross(first, first.roll(1, 1) + torch.tensor([0.3, 0.5, 0.7])), dim=1)
    axes = torch.stack([side, torch.linalg.cross(first, side)], 1)  # (M, 2, 3)
    prior = torch.tensor([1 / TURN**2] * 2 + [1e-2] * 3 + [1 / GLOSS**2]) * NOISE**2
    one, none = torch.ones(1), torch.zeros(1)

    def shares(cosine: Tensor) -> tuple[Tensor, Tensor]:
        """What a white matt surface and a glossy black one reflect of the flash."""
        c = cosine.clamp(1e-3, 1)
        same = (c, c, c, torch.ones_like(c))
        return brdf.lobes(*same, one, none, rough), brdf.lobes(*same, none, one, rough)

    for _ in range(ROUNDS):
        normal = normalize(first + (turned[..., None] * axes).sum(1), dim=1)
        cosine = (towards * normal[:, None]).sum(-1, keepdim=True)
        room = brdf.ambient(normal, ambient, torch.zeros(9), scale)[:, None] * seen.gain
        matt, glint = shares(cosine)
        more, less = shares(cosine + 0.01), shares(cosine - 0.01)
        colour = albedo.exp()[:, None]
        light = colour * (flash * matt + room) + shine[:, None] * flash * glint
        by_cosine = flash * (colour * (more[0] - less[0]) + shine[:, None] * (more[1] - less[1])) / 0.02
        by_turn = by_cosine[..., None] * (towards[:, :, None] * axes[:, None]).sum(-1)[:, :, None]  # (M, V, 3, 2)
        by_albedo = torch.diag_embed(colour * (flash * matt + room))
        slope = torch.cat([by_turn, by_albedo, (flash * glint)[..., None]], -1)
        picture = brdf.to_picture(light)
        slope = slope * (picture / (brdf.GAMMA * light.clamp(min=1e-4)))[..., None]
        left = seen.value - picture
        trust = seen.fine / (1 + (left.square().mean(-1) / NOISE**2))
        weighted = slope * trust[..., None, None]
        H = torch.einsum("mvci,mvcj->mij", weighted, slope) + torch.diag(prior)
        off = torch.cat([-turned, torch.zeros_like(albedo), begin - shine], 1) * prior
        step = torch.linalg.solve(H, (torch.einsum("mvci,mvc->mi", weighted, left) + off)[..., None])[..., 0]
        turned = (turned + step[:, :2].clamp(-0.2, 0.2)).clamp(-1, 1)
        albedo = (albedo + step[:, 2:5].clamp(-0.5, 0.5)).clamp(-7, 0)
        shine = (shine + step[:, 5:].clamp(-0.3, 0.3)).clamp(0, 1)
    normal = normalize(first + (turned[..., None] * axes).sum(1), dim=1)
    return normal, trust.sum(1) > FEWEST / 2


def bend(field: Field, active: list[int], told: Told, seed: int) -> None:
    """Let the face's normals at points be what they are told, in place; the surface stays near them."""
    device, generator = field.device, torch.Generator().manual_seed(seed)
    parameters = [field.distance_table, *field.distance_mlp.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE, eps=1e-15)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1 ** (step / STEPS)
        some = torch.randint(len(told.position), (BATCH,), generator=generator)
        x, wanted, sure = (values[some].to(device) for values in (told.position, told.normal, told.sure))
        distance, _, gradient = field.face_gradient(x, active)
        off = (normalize(gradient, dim=1) - wanted).norm(dim=1)
        held = ((distance - field.level) / STRAY).square()
        loss = (
            (off * torch.where(sure, 1.0, KEPT)).mean()
            + HELD * held.mean()
            + SLOPE * (gradient.norm(dim=1) - 1).square().mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
