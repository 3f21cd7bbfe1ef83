"""`rasterize`: what `gsplat.rasterization` 1.5.3 does, on the CPU through our kernels and on CUDA through gsplat."""

import importlib.util
import math
import os
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recon4d.files import InputError
from recon4d.splat import kernels
from recon4d.splat.harmonics import spherical_harmonics
from recon4d.splat.threads import run

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
ENVIRONMENT_VARIABLE = "RECON4D_SPLAT_BACKEND"
# accepted and passed on where gsplat renders; refused on the CPU when they are set
_GSPLAT_ONLY = (
    "with_ut",
    "with_eval3d",
    "radial_coeffs",
    "tangential_coeffs",
    "thin_prism_coeffs",
    "ftheta_coeffs",
    "rolling_shutter",
    "viewmats_rs",
)


def backends() -> dict[str, str | None]:
    """The backends by name; the value is None when usable here, else the reason why not."""
    if importlib.util.find_spec("gsplat") is None:
        reason = "gsplat is not installed (install recon4d[cuda])"
    elif not torch.cuda.is_available():
        reason = "there is no CUDA device"
    else:
        reason = None
    return {"numba": None, "gsplat": reason}


def rasterize(
    means: Tensor,  # [..., N, 3]
    quats: Tensor,  # [..., N, 4]
    scales: Tensor,  # [..., N, 3]
    opacities: Tensor,  # [..., N]
    colors: Tensor,  # [..., (C,) N, D] or [..., (C,) N, K, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
    Ks: Tensor,  # [..., C, 3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,  # [..., C, D]
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    backend: Literal["numba", "gsplat"] | None = None,
    **gsplat_only: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rasterize Gaussians to the images of C cameras (Kerbl et al. 2023), for any number of leading batch dimensions.

    Names, shapes and meaning are those of `gsplat.rasterization` 1.5.3, except that `packed` is off by default.
    Differentiable in means, quats, scales, opacities, colors, viewmats and backgrounds (not in Ks).

    Args:
        means: centres in world coordinates, metres.
        quats: rotations, wxyz, of any length (zero counts as no rotation).
        scales: standard deviations along the rotated axes, metres.
        opacities: in [0, 1].
        colors: any D channels, or, with `sh_degree`, K >= (sh_degree + 1)^2 spherical-harmonics coefficients.
        viewmats: world to camera, OpenCV axes.
        Ks: intrinsics in pixels; pixel centres are at +0.5.
        width, height: pixels.
        near_plane, far_plane: Gaussians with a centre outside are culled.
        radius_clip: Gaussians whose radius in pixels is not larger, in x and in y, are culled.
        eps2d: added to the diagonal of the 2-D covariance, pixels^2.
        packed: keep the per-Gaussian values in `meta` for visible Gaussians only.
        backgrounds: blended in with the transmittance that is left; in the depth modes zero is used for depth.
        render_mode: colours, accumulated depth (D), expected depth (ED), or both with depth as the last channel.
        absgrad: put sums of |gradient| into `meta["means2d"].absgrad` on backward (AbsGS, Ye et al. 2024).
        rasterize_mode: "antialiased" scales opacities by sqrt(det S / det(S + eps2d I)) (Mip-Splatting, Yu et
            al. 2024).
        distributed: Gaussians and cameras are spread over the ranks of a process group (CUDA only).
        backend: "numba" or "gsplat"; by default RECON4D_SPLAT_BACKEND decides, else the device of `means`.
        tile_size, sparse_grad, channel_chunk, segmented: tune gsplat; they change nothing on the CPU.
        camera_model, covars, and gsplat's options for distortion and rolling shutter: CUDA only.

    Returns:
        colors (..., C, height, width, X), alphas (..., C, height, width, 1), and `meta`: radii (..., C, N, 2) int32 in
        pixels, zero where culled; means2d, depths, conics, opacities, tiles_per_gauss with the same leading shape;
        isect_offsets, flatten_ids (each tile's Gaussians front to back); tile_size, tile_width, tile_height, width,
        height, n_batches, n_cameras; batch_ids, camera_ids, gaussian_ids (None unless packed).

    On the CPU a Gaussian with a number that is not finite is culled. Work is float32 whatever comes in.

    Raises:
        InputError: the backend cannot do what is asked. ValueError: shapes that do not fit.
    """
    unknown = set(gsplat_only) - set(_GSPLAT_ONLY)
    if unknown:
        raise TypeError(f"rasterize() got an unexpected keyword argument {min(unknown)!r}")
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode is {render_mode!r}; it must be one of {', '.join(RENDER_MODES)}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f'rasterize_mode is {rasterize_mode!r}; it must be "classic" or "antialiased"')
    if _choose_backend(backend, means.device) == "gsplat":
        import gsplat

        return gsplat.rasterization(
            means,
            quats,
            scales,
            opacities,
            colors,
            viewmats,
            Ks,
            width,
            height,
            near_plane=near_plane,
            far_plane=far_plane,
            radius_clip=radius_clip,
            eps2d=eps2d,
            sh_degree=sh_degree,
            packed=packed,
            tile_size=tile_size,
            backgrounds=backgrounds,
            render_mode=render_mode,
            sparse_grad=sparse_grad,
            absgrad=absgrad,
            rasterize_mode=rasterize_mode,
            channel_chunk=channel_chunk,
            distributed=distributed,
            camera_model=camera_model,
            segmented=segmented,
            covars=covars,
            **gsplat_only,
        )
    if distributed:
        raise InputError(
            "distributed=True needs CUDA tensors and the gsplat backend; render whole scenes on the CPU"
        )
    if camera_model != "pinhole":
        raise InputError(f'camera_model="{camera_model}" needs the gsplat backend; on the CPU use "pinhole"')
    if covars is not None:
        raise InputError("covars needs the gsplat backend; on the CPU give quats and scales")
    for name, value in gsplat_only.items():
        if value is not None and value is not False and getattr(value, "name", "") != "GLOBAL":
            raise InputError(f"{name} needs the gsplat backend; leave it out on the CPU")
    return _rasterize_cpu(
        means,
        quats,
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        int(width),
        int(height),
        (
            float(near_plane),
            float(far_plane),
            float(radius_clip),
            float(eps2d),
            rasterize_mode == "antialiased",
        ),
        sh_degree,
        packed,
        backgrounds,
        render_mode,
        absgrad,
    )


def _choose_backend(forced: str | None, device: torch.device) -> str:
    usable = backends()
    source = "backend"
    if forced is None and os.environ.get(ENVIRONMENT_VARIABLE):
        forced, source = os.environ[ENVIRONMENT_VARIABLE], ENVIRONMENT_VARIABLE
    if forced is None:
        forced, source = ("gsplat" if device.type == "cuda" else "numba"), f"device {device}"
    if forced not in usable:
        raise InputError(f"{source}={forced} is not a backend; choose one of {', '.join(usable)}")
    if usable[forced] is not None:
        raise InputError(
            f"the {forced} backend ({source}) is not usable: {usable[forced]}; use CPU tensors with numba"
        )
    wanted = "cuda" if forced == "gsplat" else "cpu"
    if device.type != wanted:
        raise InputError(
            f"the {forced} backend ({source}) needs tensors on {wanted}, not on {device}; move them there"
        )
    return forced


def _rasterize_cpu(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, options, sh_degree, packed, backgrounds,
    render_mode, absgrad,
):  # fmt: skip
    batch, N = tuple(means.shape[:-2]), means.shape[-2]
    C = viewmats.shape[-3] if viewmats.dim() >= 3 else 0
    B = math.prod(batch)
    images = B * C
    K = colors.shape[-2] if sh_degree is not None else None
    tail = (N,) if sh_degree is None else (N, K)
    per_camera = tuple(colors.shape[:-1]) == (*batch, C, *tail)
    for name, tensor, shape in (
        ("means", means, (*batch, N, 3)),
        ("quats", quats, (*batch, N, 4)),
        ("scales", scales, (*batch, N, 3)),
        ("opacities", opacities, (*batch, N)),
        ("viewmats", viewmats, (*batch, C, 4, 4)),
        ("Ks", Ks, (*batch, C, 3, 3)),
        ("colors", colors, (*batch, *((C,) if per_camera else ()), *tail, colors.shape[-1])),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with these means and viewmats it must be {shape}"
            )
    if width < 1 or height < 1:
        raise ValueError(f"width and height are {width} and {height}; they must be at least 1")

    radii, means2d, depths, conics, compensations, shape, boxes, tile_counts = _Project.apply(
        _rows(means, B, N, 3),
        _rows(quats, B, N, 4),
        _rows(scales, B, N, 3),
        _rows(opacities, B, N),
        _rows(viewmats, B, C, 4, 4),
        _rows(Ks, B, C, 3, 3),
        width,
        height,
        *options,
    )
    antialiased = options[-1]
    radii, means2d = radii.reshape(B, C, N, 2), means2d.reshape(B, C, N, 2)
    depths, conics = depths.reshape(B, C, N), conics.reshape(B, C, N, 3)
    compensations = compensations.reshape(B, C, N)
    opacities = opacities.float().reshape(B, 1, N).expand(B, C, N)
    if antialiased:
        opacities = opacities * compensations

    if sh_degree is not None:
        if not 0 <= sh_degree <= 3 or (sh_degree + 1) ** 2 > K or colors.shape[-1] != 3:
            raise ValueError(
                f"sh_degree {sh_degree} needs 0 to 3, and at least {(sh_degree + 1) ** 2} x 3 coefficients"
            )
        centres = torch.linalg.inv(viewmats.float())[..., :3, 3].reshape(B, C, 1, 3)
        directions = means.float().reshape(B, 1, N, 3) - centres
        coefficients = colors.reshape(B, C, N, K, 3) if per_camera else colors.reshape(B, 1, N, K, 3)
        visible = radii[..., 0] > 0
        colors = torch.clamp_min(spherical_harmonics(sh_degree, directions, coefficients, visible) + 0.5, 0.0)
    else:
        D = colors.shape[-1]
        colors = colors.float().reshape(B, C if per_camera else 1, N, D).expand(B, C, N, D)
    if backgrounds is not None:
        if render_mode in ("D", "ED"):
            backgrounds = None  # zero for depth
        elif tuple(backgrounds.shape) != (*batch, C, colors.shape[-1]):
            raise ValueError(
                f"backgrounds has shape {tuple(backgrounds.shape)}; it must be {(*batch, C, colors.shape[-1])}"
            )
        else:
            backgrounds = backgrounds.float().reshape(images, -1)
    if render_mode in ("D", "ED"):
        colors = depths[..., None]
    elif render_mode != "RGB":
        colors = torch.cat([colors, depths[..., None]], dim=-1)
        if backgrounds is not None:
            backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(images, 1)], dim=-1)

    lead = (*batch, C, N)
    ids: tuple = (None, None, None)
    starts = torch.arange(images + 1) * N
    if packed:
        chosen = torch.nonzero((radii[..., 0] > 0).reshape(-1))[:, 0]
        starts = torch.searchsorted(chosen, starts)
        lead = (len(chosen),)
        ids = (chosen // (C * N), chosen // N % C, chosen % N) if N else (chosen, chosen, chosen)
        radii, means2d, depths, conics, opacities, colors = (
            t.reshape(images * N, *t.shape[3:])[chosen]
            for t in (radii, means2d, depths, conics, opacities, colors)
        )
        shape, boxes, tile_counts = shape[chosen], boxes[chosen], tile_counts[chosen]
    radii, means2d = radii.reshape(*lead, 2), means2d.reshape(*lead, 2)
    depths, conics, opacities = depths.reshape(lead), conics.reshape(*lead, 3), opacities.reshape(lead)
    count = math.prod(lead)
    tiles_x, tiles_y = -(-width // kernels.TILE), -(-height // kernels.TILE)
    lists = _tile_lists(boxes, depths.detach().reshape(count), tile_counts, starts, tiles_x, tiles_y)
    rendered, alphas = _Composite.apply(
        means2d,
        conics.reshape(count, 3),
        colors.reshape(count, colors.shape[-1]),
        opacities.reshape(count),
        backgrounds,
        shape,
        lists,
        (images, height, width),
        means2d if absgrad else None,
    )
    if render_mode in ("ED", "RGB+ED"):
        expected = rendered[..., -1:] / alphas.clamp_min(1e-10)
        rendered = torch.cat([rendered[..., :-1], expected], dim=-1)
    meta = {
        "batch_ids": ids[0],
        "camera_ids": ids[1],
        "gaussian_ids": ids[2],
        "radii": radii,
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": opacities,
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "tiles_per_gauss": tile_counts.reshape(lead),
        "flatten_ids": lists["entries"],
        "isect_offsets": lists["tile_starts"][:-1].int().reshape(*batch, C, tiles_y, tiles_x),
        "width": width,
        "height": height,
        "tile_size": kernels.TILE,
        "n_batches": B,
        "n_cameras": C,
    }
    size = (*batch, C, height, width)
    return rendered.reshape(*size, rendered.shape[-1]), alphas.reshape(*size, 1), meta


def _rows(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.float().reshape(shape).contiguous()


class _Project(torch.autograd.Function):
    """Projection of every Gaussian into every image. The opacities bound the radii and get no gradient here."""

    @staticmethod
    def forward(
        ctx,
        means,
        quats,
        scales,
        opacities,
        viewmats,
        Ks,
        width,
        height,
        near,
        far,
        radius_clip,
        eps2d,
        antialiased,
    ):
        B, N, C = means.shape[0], means.shape[1], viewmats.shape[1]
        radii = torch.empty(B * C, N, 2, dtype=torch.int32)
        means2d, depths = torch.empty(B * C, N, 2), torch.empty(B * C, N)
        conics, compensations = torch.empty(B * C, N, 3), torch.empty(B * C, N)
        shape = torch.empty(B * C * N, kernels.SHAPE)
        boxes = torch.empty(B * C * N, 4, dtype=torch.int16)
        tile_counts = torch.empty(B * C * N, dtype=torch.int32)
        inputs = [t.detach().numpy() for t in (means, quats, scales, opacities, viewmats, Ks)]
        outputs = [
            t.numpy() for t in (radii, means2d, depths, conics, compensations, shape, boxes, tile_counts)
        ]
        run(
            kernels.project, B * C * -(-N // kernels.CHUNK), *inputs, width, height, near, far, radius_clip, eps2d,
            antialiased, *outputs,
        )  # fmt: skip
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, radii, conics, compensations)
        ctx.options = (width, height, eps2d)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(radii, shape, boxes, tile_counts)
        return radii, means2d, depths, conics, compensations, shape, boxes, tile_counts

    @staticmethod
    @once_differentiable
    def backward(ctx, _radii, v_means2d, v_depths, v_conics, v_compensations, *_):
        means, quats, scales, viewmats, Ks, radii, conics, compensations = ctx.saved_tensors
        B, N, C = means.shape[0], means.shape[1], viewmats.shape[1]
        upstream = [
            torch.zeros(empty) if v is None else v.contiguous()
            for v, empty in (
                (v_means2d, radii.shape),
                (v_depths, (0, 0)),
                (v_conics, conics.shape),
                (v_compensations, (0, 0)),
            )
        ]
        pieces = -(-N // kernels.CHUNK)
        v_means, v_quats, v_scales = (
            torch.empty_like(means),
            torch.empty_like(quats),
            torch.empty_like(scales),
        )
        v_parts = torch.empty(B, pieces, C, 12)
        run(
            kernels.project_backward,
            B * pieces,
            *(t.numpy() for t in (means, quats, scales, viewmats, Ks)),
            *ctx.options,
            *(
                t.numpy()
                for t in (radii, conics, compensations, *upstream, v_means, v_quats, v_scales, v_parts)
            ),
        )
        v_viewmats = torch.zeros(B, C, 4, 4)
        v_viewmats[:, :, :3] = v_parts.sum(1, dtype=torch.float64).reshape(B, C, 3, 4)
        return (v_means, v_quats, v_scales, None, v_viewmats, *[None] * 8)


def _tile_lists(boxes, depths, tile_counts, starts, tiles_x, tiles_y) -> dict[str, Any]:
    """The Gaussians of every tile, front to back. Memory grows with the number of (Gaussian, tile) pairs."""
    images = len(starts) - 1
    slots = torch.zeros(len(tile_counts) + 1, dtype=torch.int64)
    torch.cumsum(tile_counts, 0, out=slots[1:])
    total = int(slots[-1])
    tile_starts = torch.zeros(images * tiles_x * tiles_y + 1, dtype=torch.int64)
    entries = torch.empty(total, dtype=torch.int32)
    places = torch.empty(total, dtype=torch.int32)
    run(
        kernels.bin_tiles,
        images,
        *(t.numpy() for t in (boxes, depths, tile_counts, slots, starts)),
        tiles_x,
        tiles_y,
        *(t.numpy() for t in (tile_starts, entries, places)),
    )
    return {
        "slots": slots,
        "tile_starts": tile_starts,
        "entries": entries,
        "places": places,
        "tiles": (tiles_x, tiles_y),
    }


class _Composite(torch.autograd.Function):
    """Alpha compositing of projected Gaussians; `shape` holds the same Gaussians as the kernels want them."""

    @staticmethod
    def forward(ctx, means2d, conics, colors, opacities, backgrounds, shape, lists, size, absolute_of):
        images, height, width = size
        colors = colors.contiguous()
        D = colors.shape[-1]
        image, alphas = torch.empty(images, height, width, D), torch.empty(images, height, width)
        tiles = images * lists["tiles"][0] * lists["tiles"][1]
        state = torch.empty(tiles, 2 * kernels.TILE_PIXELS)
        behind = torch.zeros(0, D) if backgrounds is None else backgrounds.detach().contiguous()
        run(
            kernels.composite_for(D),
            tiles,
            *(t.detach().numpy() for t in (shape, colors, behind, lists["tile_starts"], lists["entries"])),
            *lists["tiles"],
            *(t.numpy() for t in (image, alphas, state)),
        )
        ctx.save_for_backward(conics, colors, opacities, behind, shape, state, alphas)
        ctx.lists, ctx.means_shape, ctx.absolute_of = lists, means2d.shape, absolute_of
        return image, alphas[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image, v_alphas):
        conics, colors, opacities, behind, shape, state, alphas = ctx.saved_tensors
        count, D = colors.shape
        lists = ctx.lists
        conics, opacities = conics.contiguous(), opacities.contiguous()
        v_image, v_alphas = v_image.contiguous(), v_alphas.contiguous().reshape(alphas.shape)
        wanted = ctx.absolute_of is not None
        row = kernels.MOMENTS + (2 if wanted else 0) + D
        parts = torch.empty(
            len(lists["entries"]) + 1 + 16 // row, row
        )  # `gather` reads a vector past the end
        run(
            kernels.composite_backward_for(D, wanted),
            state.shape[0],
            *(
                t.numpy()
                for t in (
                    shape,
                    colors,
                    conics,
                    behind,
                    lists["tile_starts"],
                    lists["entries"],
                )
            ),
            *lists["tiles"],
            *(t.numpy() for t in (state, v_image, v_alphas, parts)),
        )
        v_means2d, v_conics = torch.empty(count, 2), torch.empty(count, 3)
        v_opacities, v_colors = torch.empty(count), torch.empty(count, D)
        v_absolute = torch.empty(count if wanted else 0, 2)
        run(
            kernels.gather,
            -(-count // kernels.CHUNK),
            *(
                t.numpy()
                for t in (
                    lists["slots"], lists["places"], parts, conics, opacities,
                    v_means2d, v_conics, v_opacities, v_colors, v_absolute,
                )
            ),
        )  # fmt: skip
        if wanted:
            ctx.absolute_of.absgrad = v_absolute.reshape(ctx.absolute_of.shape)
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = ((1.0 - alphas[..., None]) * v_image).sum((1, 2))
        v_means2d = v_means2d.reshape(ctx.means_shape)
        return v_means2d, v_conics, v_colors, v_opacities, v_backgrounds, None, None, None, None
