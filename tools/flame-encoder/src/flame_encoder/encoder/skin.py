"""Light and skin from the picture itself, once it is known where the head is.

The colours of the face are an albedo, a mean and a few components, times the light of nine spherical harmonics
(`recon4d.mesh.shade`). Both are solved for together by the Gauss-Newton method, with what the network says as belief;
light alone could explain any skin. Pixels that the head does not explain (hair, glasses, hands) lose their weight.
"""

from collections.abc import Callable

import torch
from recon4d import mesh
from recon4d.color import linear_from_srgb, srgb_from_linear
from recon4d.head import HeadModel
from recon4d.mesh import sh_basis
from recon4d.rotations import from_6d
from torch import Tensor

from flame_encoder.encoder import vector
from flame_encoder.encoder.crop import cut_out
from flame_encoder.encoder.encodings import Encoding
from flame_encoder.encoder.vector import LIGHT

SIZE = 128  # pixels of the crop that is looked at
ROUNDS = (0.3, 0.3, 0.2, 0.15, 0.1, 0.08, 0.08, 0.08)  # colour differences that are outliers, from coarse to fine
NOISE = 0.08
EVIDENCE = 150.0  # how many pixels count as independent
FEWEST = 200  # pixels of a face
STEEP = 0.35  # cosine under which a surface is seen too much from the side
LOBE = (1.0, *(2 / 3,) * 3, *(1 / 4,) * 5)  # of `mesh.shade`: what a Lambertian makes of each harmonic


def fit(head: HeadModel, found: Encoding, row: int, image: Tensor, believed: Tensor, sigma: Tensor) -> Tensor:
    """The `detail` (D,) of one image: light and albedo that explain its colours.

    Args:
        head: with texture coordinates and a small albedo (`rendering.reduced`).
        found: where the head is. image: (3, H, W) in [0, 1].
        believed: (D,) light and albedo beforehand. sigma: (D,) how sure they are.

    Where the layout has no light, the head no albedo, or the picture no face, what was believed.
    """
    before = believed
    seen = _seen(head, found, row, image) if len(before) >= LIGHT and head.albedo_mean is not None else None
    if seen is None or head.albedo_mean is None:
        return before
    colours, normals, uv = seen
    C = 0
    textures = head.albedo_mean[..., None]
    if head.albedo_components is not None:
        C = min(len(before) - LIGHT, head.albedo_components.shape[-1])
        textures = torch.cat([textures, head.albedo_components[..., :C]], -1)
    texels = mesh.texture(textures.flatten(2)[None], uv[None, None])[0, 0].unflatten(1, (3, 1 + C)).double()
    harmonics = (sh_basis(normals) * normals.new_tensor(LOBE)).double()
    neutral = vector.light({"detail": torch.zeros_like(before[None])})[0].double().flatten()
    mean = before[: LIGHT + C].double()
    precision = sigma[: LIGHT + C].double().clamp_min(0.02) ** -2
    x = mean.clone()
    n = len(colours)
    for outlier in ROUNDS:
        skin = (texels[..., 0] + texels[..., 1:] @ x[LIGHT:]).clamp(0.02, 1)
        linear, by_skin = with_slope(linear_from_srgb, skin)
        light = (harmonics @ (neutral + x[:LIGHT]).view(9, 3)).clamp_min(0.01)
        shown, by_linear = with_slope(srgb_from_linear, linear * light)
        off = shown - colours
        weight = (outlier**2 / (outlier**2 + off.square().mean(1))) ** 2 * (EVIDENCE / n / NOISE**2)
        J = torch.zeros(n, 3, LIGHT + C, dtype=torch.float64)
        for channel in range(3):
            J[:, channel, channel:LIGHT:3] = (by_linear * linear)[:, channel, None] * harmonics
        J[..., LIGHT:] = (by_linear * light * by_skin)[..., None] * texels[..., 1:]
        weighed = (J * weight[:, None, None]).flatten(0, 1)
        H = weighed.T @ J.flatten(0, 1) + torch.diag(precision)
        x = x - torch.linalg.solve(H, weighed.T @ off.flatten() + precision * (x - mean))
    answer = before.clone()
    answer[: LIGHT + C] = x.float()
    return answer if answer.isfinite().all() else before


def with_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """What an elementwise function gives, and its derivative."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def _seen(head: HeadModel, found: Encoding, row: int, image: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Colours (n, 3), normals (n, 3) in the light's axes and texture coordinates (n, 2) of the face's pixels."""
    assert head.vt is not None and head.ft is not None
    parts = found.parts([row])
    unturned = head(**vector.head_arguments(head, parts))
    camera, R, t = found.crop_camera(head, row, SIZE)
    placed = unturned @ R.T + t
    picture = cut_out(image[None], torch.from_numpy(found.crops[[row]]), SIZE)[0].permute(1, 2, 0)
    rast = mesh.rasterize(camera.clip(placed), head.faces, (SIZE, SIZE))
    around = mesh.vertex_normals(unturned, head.faces)
    normals = torch.nn.functional.normalize(mesh.interpolate(around, rast, head.faces)[0], dim=-1)
    sight = torch.nn.functional.normalize(mesh.interpolate(placed, rast, head.faces)[0], dim=-1)
    triangles = rast.tri_id[0].long()
    facing = -(normals @ R.T * sight).sum(-1) > STEEP
    mask = (triangles >= 0) & facing & face(head)[triangles.clamp_min(0)]
    if mask.sum() < FEWEST:
        return None
    uv = mesh.interpolate(head.vt[None], rast, head.ft)[0][mask]
    return picture[mask].double(), (normals @ from_6d(parts["global_rot"])[0].T)[mask], uv


def face(head: HeadModel) -> Tensor:
    """(F,) bool, skin of the face: neither eyes nor the inside of the mouth."""
    regions = head.regions or {}
    kept = torch.ones(len(head.v_template), dtype=torch.bool)
    if "face" in regions:
        kept = regions["face"].clone()
    for name in ("eyes", "mouth_interior"):
        if name in regions:
            kept &= ~regions[name]
    return kept[head.faces].all(1)
