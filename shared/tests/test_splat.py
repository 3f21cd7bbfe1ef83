"""The CPU rasterizer against gsplat's torch projection and a dense float64 composite differentiated by autograd."""

import math

import pytest
import torch
from gsplat.cuda import _torch_impl as gsplat_torch
from recon4d import splat

INPUTS = ("means", "quats", "scales", "opacities", "colors", "viewmats")


def make_scene(seed=0, N=40, batch=(), C=1, D=3, K=None, per_camera=False, width=37, height=29, opacity=(0.05, 1.0)):
    """Random Gaussians in front of C cameras, a few of them behind, outside or across the near plane."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape, low=0.0, high=1.0):
        return torch.rand(*shape, generator=random, dtype=torch.float64) * (high - low) + low

    means = torch.cat([uniform(*batch, N, 2, low=-1.3, high=1.3), uniform(*batch, N, 1, low=-1.9, high=2.5)], -1)
    quats = uniform(*batch, N, 4, low=-1, high=1) * uniform(*batch, N, 1, low=0.2, high=3)
    scales = torch.exp(uniform(*batch, N, 3, low=math.log(0.01), high=math.log(0.4)))
    tail = (N, D) if K is None else (N, K, 3)
    colors = uniform(*batch, *((C,) if per_camera else ()), *tail, low=0.0 if K is None else -0.6)
    viewmats = torch.eye(4, dtype=torch.float64).repeat(*batch, C, 1, 1)
    viewmats[..., :3, :3] = torch.linalg.qr(
        torch.eye(3, dtype=torch.float64) + uniform(*batch, C, 3, 3, low=-0.15, high=0.15)
    )[0]
    viewmats[..., :3, :3] *= torch.linalg.det(viewmats[..., :3, :3])[..., None, None]
    viewmats[..., :3, :3] *= torch.sign(viewmats[..., 2:3, 2:3])  # look forward
    viewmats[..., :3, 3] = uniform(*batch, C, 3, low=-0.1, high=0.1) + torch.tensor([0.0, 0.0, 1.5])
    Ks = torch.zeros(*batch, C, 3, 3, dtype=torch.float64)
    Ks[..., 0, 0], Ks[..., 1, 1] = uniform(*batch, C, low=25, high=32), uniform(*batch, C, low=25, high=32)
    Ks[..., 0, 2], Ks[..., 1, 2] = width / 2 + 1.3, height / 2 - 0.6
    Ks[..., 2, 2] = 1
    # what the kernels see is float32: start from numbers that both precisions hold
    tensors = means, quats, scales, uniform(*batch, N, low=opacity[0], high=opacity[1]), colors, viewmats, Ks
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    return {name: tensor.float().double() for name, tensor in zip(names, tensors)} | {
        "width": width,
        "height": height,
    }


def dense_render(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=0.01, far_plane=1e10,
    radius_clip=0.0, eps2d=0.3, sh_degree=None, backgrounds=None, render_mode="RGB", rasterize_mode="classic",
):  # fmt: skip
    """All pixels times all Gaussians in float64: image, alphas, and the pixels that no threshold is close to."""
    batch, N, C = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    covars, _ = gsplat_torch._quat_scale_to_covar_preci(quats, scales, True, False)
    radii, means2d, depths, conics, compensations = gsplat_torch._fully_fused_projection(
        means, covars, viewmats, Ks, width, height, eps2d, near_plane, far_plane,
        calc_compensations=rasterize_mode == "antialiased",
    )  # fmt: skip
    opacities = opacities[..., None, :].expand(*batch, C, N)
    if compensations is not None:
        opacities = opacities * compensations
    radii = tight_radii(means2d, conics.detach(), opacities.detach(), radii, radius_clip, width, height)
    if sh_degree is not None:
        centres = torch.linalg.inv(viewmats)[..., None, :3, 3]
        directions = means[..., None, :, :] - centres
        if colors.dim() == means.dim() + 1:
            colors = colors[..., None, :, :, :].expand(*batch, C, *colors.shape[-3:])
        colors = (gsplat_torch._spherical_harmonics(sh_degree, directions, colors) + 0.5).clamp_min(0.0)
    elif colors.dim() == means.dim():
        colors = colors[..., None, :, :].expand(*batch, C, *colors.shape[-2:])
    if render_mode in ("D", "ED"):
        colors = depths[..., None]
    elif render_mode != "RGB":
        colors = torch.cat([colors, depths[..., None]], -1)

    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    images, certain_pixels, coverages = [], [], []
    for m, q, o, c, z, r in zip(
        means2d.reshape(-1, N, 2), conics.reshape(-1, N, 3), opacities.reshape(-1, N),
        colors.reshape(-1, N, colors.shape[-1]), depths.reshape(-1, N), radii.reshape(-1, N, 2),
    ):  # fmt: skip
        order = torch.argsort(z, stable=True)
        order = order[r[order, 0] > 0]
        m, q, o, c = m[order], q[order], o[order], c[order]
        dx, dy = xs[..., None].double() - m[:, 0], ys[..., None].double() - m[:, 1]
        sigma = 0.5 * (q[:, 0] * dx * dx + q[:, 2] * dy * dy) + q[:, 1] * dx * dy
        free = o * torch.exp(-sigma)
        alpha = free.clamp_max(0.999)
        certain = ((free - 1 / 255).abs() > 1e-6).all(-1) & ((free - 0.999).abs() > 1e-5).all(-1)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        after = torch.cumprod(1 - alpha, -1)
        certain &= ((after - 1e-4).abs() > 1e-6).all(-1)
        running = after > 1e-4
        alpha = torch.where(running, alpha, 0.0)
        after = torch.cumprod(1 - alpha, -1)
        before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
        images.append(torch.einsum("hwn,nd->hwd", alpha * before, c))
        coverages.append(1 - (after[..., -1:] if after.shape[-1] else torch.ones(height, width, 1, dtype=c.dtype)))
        certain_pixels.append(certain)
    image = torch.stack(images).reshape(*batch, C, height, width, -1)
    alphas = torch.stack(coverages).reshape(*batch, C, height, width, 1)
    if backgrounds is not None and render_mode not in ("D", "ED"):
        if render_mode != "RGB":
            backgrounds = torch.cat([backgrounds, torch.zeros_like(backgrounds[..., :1])], -1)
        image = image + (1 - alphas) * backgrounds[..., None, None, :]
    if render_mode in ("ED", "RGB+ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alphas.clamp_min(1e-10)], -1)
    certain = torch.stack(certain_pixels).reshape(*batch, C, height, width, 1)
    return image, alphas, certain, {"radii": radii, "means2d": means2d, "depths": depths, "conics": conics}


def tight_radii(means2d, conics, opacities, loose, radius_clip, width, height):
    """min(3.33, sqrt(2 ln(255 opacity))) sigmas, as ProjectionEWA3DGSFused.cu has it; torch's are 3.33 sigmas."""
    det = conics[..., 0] * conics[..., 2] - conics[..., 1] ** 2
    variances = torch.stack([conics[..., 2], conics[..., 0]], -1) / det[..., None]
    extent = torch.sqrt(2 * torch.log((opacities * 255).clamp_min(1e-9)).clamp_min(0)).clamp_max(3.33)
    tight = torch.ceil(extent[..., None] * torch.sqrt(variances)).int()
    inside = ((means2d + tight > 0) & (means2d - tight < torch.tensor([width, height]))).all(-1)
    kept = (loose > 0).all(-1) & (opacities >= 1 / 255) & (tight.amax(-1) > radius_clip) & inside
    return torch.where(kept[..., None], tight, 0)


def as_float32(scene, differentiate=()):
    return {
        name: (value.float().requires_grad_(name in differentiate) if torch.is_tensor(value) else value)
        for name, value in scene.items()
    }


MODES = [
    dict(),
    dict(rasterize_mode="antialiased"),
    dict(render_mode="D"),
    dict(render_mode="ED", opacity=(0.6, 1.0)),
    dict(render_mode="RGB+D", backgrounds=True),
    dict(render_mode="RGB+ED", rasterize_mode="antialiased", C=2),
    dict(backgrounds=True, batch=(2,), C=2),
    dict(D=1, batch=(2, 2)),
    dict(D=2, C=3, per_camera=True),
    dict(D=7, backgrounds=True),
    dict(D=40, N=15),
    dict(K=1, sh_degree=0),
    dict(K=4, sh_degree=1, C=2),
    dict(K=16, sh_degree=2, batch=(2,), C=2, per_camera=True),
    dict(K=16, sh_degree=3, render_mode="RGB+D", backgrounds=True),
    dict(eps2d=0.05, near_plane=1.6, far_plane=3.0, radius_clip=3.0),
    dict(opacity=(0.9, 1.0), N=200),  # transmittance runs out, alphas are clamped
    dict(width=64, height=48, N=70),  # whole tiles
]


def split_options(mode):
    """A mode's scene arguments and its rasterize options."""
    own = {
        k: v for k, v in mode.items() if k in ("N", "batch", "C", "D", "K", "per_camera", "width", "height", "opacity")
    }
    return own, {k: v for k, v in mode.items() if k not in own}


def build(mode, seed=3):
    own, options = split_options(mode)
    scene = make_scene(seed=seed, **own)
    if options.pop("backgrounds", False):
        shape = (*own.get("batch", ()), own.get("C", 1), own.get("D", 3))
        scene["backgrounds"] = torch.rand(shape, generator=torch.Generator().manual_seed(9)).double()
    return scene, options


def label(mode):
    return "-".join(f"{k}={v}" for k, v in mode.items()) or "plain"


@pytest.mark.parametrize("mode", MODES, ids=label)
def test_forward_matches_dense_float64(mode):
    scene, options = build(mode)
    image, alphas, certain, meta = dense_render(**scene, **options)
    ours, our_alphas, our_meta = splat.rasterize(**as_float32(scene), **options)
    assert ours.shape == image.shape and our_alphas.shape == alphas.shape
    assert certain.float().mean() > 0.9 and alphas.amax() > 0.5
    scale = image.abs().amax().clamp_min(1.0)
    assert ((ours - image).abs() * certain).amax() < 1e-5 * scale
    assert ((our_alphas - alphas).abs() * certain).amax() < 1e-5
    visible = meta["radii"][..., 0] > 0
    assert 3 <= visible.sum() < visible.numel()
    torch.testing.assert_close(our_meta["radii"], meta["radii"], rtol=0, atol=0)
    for name, tolerance in (("means2d", 1e-4), ("depths", 1e-6), ("conics", 1e-5)):
        ours_visible, reference = our_meta[name][visible], meta[name][visible]
        assert ((ours_visible - reference).abs() / (1 + reference.abs())).amax() < tolerance


@pytest.mark.parametrize("mode", MODES, ids=label)
def test_gradients_match_dense_float64(mode):
    scene, options = build(mode)
    names = [n for n in (*INPUTS, "backgrounds") if n in scene]
    if options.get("render_mode") in ("D", "ED"):
        names.remove("colors")
    exact = {n: (v.clone().requires_grad_() if n in names else v) for n, v in scene.items()}
    image, alphas, certain, _ = dense_render(**exact, **options)
    random = torch.Generator().manual_seed(5)
    v_image = torch.randn(image.shape, generator=random).double() * certain
    v_alphas = torch.randn(alphas.shape, generator=random).double() * certain
    if options.get("render_mode") in ("ED", "RGB+ED"):  # a ratio of small numbers where little is covered
        v_image = v_image * (alphas.detach() > 0.05)
    expected = torch.autograd.grad((image * v_image).sum() + (alphas * v_alphas).sum(), [exact[n] for n in names])
    single = as_float32(scene, names)
    image, alphas, _ = splat.rasterize(**single, **options)
    loss = (image * v_image.float()).sum() + (alphas * v_alphas.float()).sum()
    for name, ours, reference in zip(names, torch.autograd.grad(loss, [single[n] for n in names]), expected):
        assert reference.abs().amax() > 0, name
        error = (ours - reference).abs().amax() / reference.abs().amax()
        assert error < 2e-4, f"{name}: {error}"


def test_dense_reference_gradients_by_finite_differences():
    """The reference itself: central differences in float64, away from every threshold."""
    scene = make_scene(seed=1, N=6, width=9, height=8, opacity=(0.3, 0.8))
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        image, _, certain, _ = dense_render(**scene)
    weights = torch.randn(image.shape, generator=random).double() * certain

    def loss(**changed):
        return (dense_render(**(scene | changed))[0] * weights).sum()

    for name in INPUTS:
        value = scene[name].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(**{name: value}), value)
        direction = torch.randn(value.shape, generator=random).double()
        if name == "viewmats":
            direction[..., 3, :] = 0  # the last row of a rigid motion is fixed
        step = 1e-6
        with torch.no_grad():
            numeric = (
                loss(**{name: scene[name] + step * direction}) - loss(**{name: scene[name] - step * direction})
            ) / (2 * step)
        assert abs(numeric - (gradient * direction).sum()) < 1e-5 * (1 + abs(numeric)), name
