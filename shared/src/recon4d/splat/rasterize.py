"""`rasterize`: what `gsplat.rasterization` 1.5.3 does, on the CPU through our kernels and on CUDA through gsplat."""

import dataclasses
import functools
import importlib.util
import math
import os
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recon4d.files import InputError
from recon4d.splat import kernels
from recon4d.splat.harmonics import spherical_harmonics
from recon4d.threads import run

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
    if not _gsplat_installed():
        reason = "gsplat is not installed (install recon4d[cuda])"
    elif not torch.cuda.is_available():
        reason = "there is no CUDA device"
    else:
        reason = None
    return {"numba": None, "gsplat": reason}


@functools.cache
def _gsplat_installed() -> bool:
    return importlib.util.find_spec("gsplat") is not None


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

    On the CPU a Gaussian whose geometry or opacity is not finite is culled. Work is float32 whatever comes in.
    The CPU lists a Gaussian only in tiles that its extents reach, so tiles_per_gauss may be less than gsplat's.

    Raises:
        InputError: a backend that is not usable here. ValueError: shapes that do not fit, options that the CPU lacks.
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

        rendered: tuple[Tensor, Tensor, dict[str, Any]] = gsplat.rasterization(
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
        return rendered
    if distributed:
        raise ValueError("distributed=True needs CUDA tensors and the gsplat backend; render whole scenes on the CPU")
    if camera_model != "pinhole":
        raise ValueError(f'camera_model="{camera_model}" needs the gsplat backend; on the CPU use "pinhole"')
    if covars is not None:
        raise ValueError("covars needs the gsplat backend; on the CPU give quats and scales")
    for name, value in gsplat_only.items():
        if value is not None and value is not False and getattr(value, "name", "") != "GLOBAL":
            raise ValueError(f"{name} needs the gsplat backend; leave it out on the CPU")
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
    source = "backend"
    if forced is None and os.environ.get(ENVIRONMENT_VARIABLE):
        forced, source = os.environ[ENVIRONMENT_VARIABLE], ENVIRONMENT_VARIABLE
    if forced is None:
        forced, source = ("gsplat" if device.type == "cuda" else "numba"), f"device {device}"
    if forced == "numba" and device.type == "cpu":
        return forced
    usable = backends()
    if forced not in usable:
        raise InputError(f"{source}={forced} is not a backend; choose one of {', '.join(usable)}")
    if usable[forced] is not None:
        raise InputError(f"the {forced} backend ({source}) is not usable: {usable[forced]}; use CPU tensors with numba")
    wanted = "cuda" if forced == "gsplat" else "cpu"
    if device.type != wanted:
        raise InputError(f"the {forced} backend ({source}) needs tensors on {wanted}, not on {device}; move them there")
    return forced


@dataclasses.dataclass(frozen=True, eq=False)
class _Projected:
    """Gaussians in the images: each value (B, C, N, ...), or (nnz, ...) of the visible ones when packed.

    shape, boxes, tile_counts: of the same Gaussians in a row, as the kernels fill and want them.
    """

    radii: Tensor
    means2d: Tensor
    depths: Tensor
    conics: Tensor
    opacities: Tensor
    colors: Tensor
    shape: np.ndarray
    boxes: np.ndarray
    tile_counts: np.ndarray

    def take(self, chosen: Tensor) -> "_Projected":
        """The chosen rows of all Gaussians in all images."""
        taken: dict[str, Any] = {
            name: value.flatten(0, 2)[chosen] if torch.is_tensor(value) else value[chosen.numpy()]
            for name, value in vars(self).items()
        }
        return _Projected(**taken)


def _rasterize_cpu(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    bounds: tuple[float, float, float, float, bool],
    sh_degree: int | None,
    packed: bool,
    backgrounds: Tensor | None,
    render_mode: str,
    absgrad: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """`rasterize` by our kernels. bounds: near_plane, far_plane, radius_clip, eps2d, antialiased."""
    batch, N = tuple(means.shape[:-2]), means.shape[-2]
    C = viewmats.shape[-3] if viewmats.dim() >= 3 else 0
    B = math.prod(batch)
    images = B * C
    per_camera = _check_shapes(means, quats, scales, opacities, colors, viewmats, Ks, sh_degree)
    if width < 1 or height < 1:
        raise ValueError(f"width and height are {width} and {height}; they must be at least 1")
    radii = torch.empty(B, C, N, 2, dtype=torch.int32)
    shape = np.empty((images * N, kernels.SHAPE), np.float32)
    boxes, tile_counts = np.empty((images * N, 4), np.int16), np.empty(images * N, np.int32)
    means2d, depths, conics, compensations = _Project.apply(  # type: ignore[no-untyped-call]
        _rows(means, B, N, 3),
        _rows(quats, B, N, 4),
        _rows(scales, B, N, 3),
        _rows(opacities, B, N),
        _rows(viewmats, B, C, 4, 4),
        _rows(Ks, B, C, 3, 3),
        (width, height, *bounds),
        (radii, shape, boxes, tile_counts),
    )
    opacities = opacities.float().reshape(B, 1, N).expand(B, C, N)
    if bounds[-1]:
        opacities = opacities * compensations
    if sh_degree is None:
        D = colors.shape[-1]
        colors = colors.float().reshape(B, C if per_camera else 1, N, D).expand(B, C, N, D)
    else:
        colors = _sh_colors(colors, means, viewmats, sh_degree, per_camera, radii)
    colors, backgrounds = _with_depth(colors, depths, backgrounds, render_mode, (*batch, C), images)

    gaussians = _Projected(radii, means2d, depths, conics, opacities, colors, shape, boxes, tile_counts)
    lead: tuple[int, ...] = (*batch, C, N)
    ids: tuple[Tensor | None, ...] = (None, None, None)
    image_starts = np.arange(images + 1) * N
    if packed:
        chosen = torch.nonzero((radii[..., 0] > 0).reshape(-1))[:, 0]
        image_starts = np.searchsorted(chosen.numpy(), image_starts)
        lead = (len(chosen),)
        ids = (chosen // (C * N), chosen // N % C, chosen % N) if N else (chosen, chosen, chosen)
        gaussians = gaussians.take(chosen)
    # Here, not in the dictionary: what callers see is what the gradient (and absgrad) belongs to.
    means2d, depths = gaussians.means2d.reshape(*lead, 2), gaussians.depths.reshape(lead)
    conics, opacities = gaussians.conics.reshape(*lead, 3), gaussians.opacities.reshape(lead)
    front_to_back = depths.detach().numpy().reshape(-1)
    lists = _tile_lists(gaussians.boxes, front_to_back, gaussians.tile_counts, image_starts, width, height)
    rendered, alphas = _Composite.apply(  # type: ignore[no-untyped-call]
        means2d,
        conics,
        gaussians.colors.reshape(*lead, colors.shape[-1]),
        opacities,
        backgrounds,
        gaussians.shape,
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
        "radii": gaussians.radii.reshape(*lead, 2),
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": opacities,
        "tile_width": lists.tiles_x,
        "tile_height": lists.tiles_y,
        "tiles_per_gauss": torch.from_numpy(gaussians.tile_counts).reshape(lead),
        "flatten_ids": torch.from_numpy(lists.entries),
        "isect_offsets": torch.from_numpy(lists.starts[:-1]).reshape(*batch, C, lists.tiles_y, lists.tiles_x),
        "width": width,
        "height": height,
        "tile_size": kernels.TILE,
        "n_batches": B,
        "n_cameras": C,
    }
    size = (*batch, C, height, width)
    return rendered.reshape(*size, rendered.shape[-1]), alphas.reshape(*size, 1), meta


def _check_shapes(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    sh_degree: int | None,
) -> bool:
    """Whether each camera has colours of its own. Raises ValueError for shapes that do not fit each other."""
    batch, N = tuple(means.shape[:-2]), means.shape[-2]
    C = viewmats.shape[-3] if viewmats.dim() >= 3 else 0
    tail = (N,) if sh_degree is None else (N, colors.shape[-2])
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
    if sh_degree is not None:
        least = (sh_degree + 1) ** 2
        if not 0 <= sh_degree <= 3 or least > colors.shape[-2] or colors.shape[-1] != 3:
            raise ValueError(f"sh_degree {sh_degree} needs 0 to 3, and at least {least} x 3 coefficients")
    return per_camera


def _sh_colors(
    coefficients: Tensor, means: Tensor, viewmats: Tensor, degree: int, per_camera: bool, radii: Tensor
) -> Tensor:
    """Colours (B, C, N, 3) of visible Gaussians seen from each camera."""
    B, C, N = radii.shape[:3]
    centres = torch.linalg.inv(viewmats.float())[..., :3, 3].reshape(B, C, 1, 3)
    directions = means.float().reshape(B, 1, N, 3) - centres
    coefficients = coefficients.reshape(B, C if per_camera else 1, N, *coefficients.shape[-2:])
    return torch.clamp_min(spherical_harmonics(degree, directions, coefficients, radii[..., 0] > 0) + 0.5, 0.0)


def _with_depth(
    colors: Tensor, depths: Tensor, backgrounds: Tensor | None, render_mode: str, lead: tuple[int, ...], images: int
) -> tuple[Tensor, Tensor | None]:
    """What is composited in a render mode, and what is behind it: (images, D), zero for depth."""
    if render_mode in ("D", "ED"):
        return depths[..., None], None
    if backgrounds is not None:
        if tuple(backgrounds.shape) != (*lead, colors.shape[-1]):
            raise ValueError(
                f"backgrounds has shape {tuple(backgrounds.shape)}; it must be {(*lead, colors.shape[-1])}"
            )
        backgrounds = backgrounds.float().reshape(images, -1)
    if render_mode != "RGB":
        colors = torch.cat([colors, depths[..., None]], dim=-1)
        if backgrounds is not None:
            backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(images, 1)], dim=-1)
    return colors, backgrounds


def _rows(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.float().reshape(shape).contiguous()


class _Project(torch.autograd.Function):
    """Projection of every Gaussian into every image; `filled` takes what is not differentiable.

    The opacities bound the radii and get no gradient here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        options: tuple[Any, ...],
        filled: tuple[Any, ...],
    ) -> tuple[Tensor, ...]:
        B, N, C = means.shape[0], means.shape[1], viewmats.shape[1]
        outputs = (
            torch.empty(B, C, N, 2),
            torch.empty(B, C, N),
            torch.empty(B, C, N, 3),
            torch.empty(B, C, N),
        )
        radii, shape, boxes, tile_counts = filled
        run(
            kernels.project,
            B * C * -(-N // kernels.CHUNK),
            *(t.numpy() for t in (means, quats, scales, opacities, viewmats, Ks)),
            *options,
            *(_images(t) for t in (radii, *outputs)),
            shape,
            boxes,
            tile_counts,
        )
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, radii, *outputs[2:])
        width, height, _, _, _, eps2d, _ = options
        ctx.options = (width, height, eps2d)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        v_means2d, v_depths, v_conics, v_compensations = grads
        means, quats, scales, viewmats, Ks, radii, conics, compensations = ctx.saved_tensors
        B, N, C = means.shape[0], means.shape[1], viewmats.shape[1]
        pieces = -(-N // kernels.CHUNK)
        v_means, v_quats, v_scales = (torch.empty_like(t) for t in (means, quats, scales))
        v_parts = np.empty((B, pieces, C, 12), np.float32)
        absent = torch.empty(0, 0, 0)
        run(
            kernels.project_backward,
            B * pieces,
            *(t.numpy() for t in (means, quats, scales, viewmats, Ks)),
            *ctx.options,
            *(_images(t) for t in (radii, conics, compensations)),
            _images(torch.zeros(B, C, N, 2) if v_means2d is None else v_means2d),
            _images(absent if v_depths is None else v_depths),
            _images(torch.zeros(B, C, N, 3) if v_conics is None else v_conics),
            _images(absent if v_compensations is None else v_compensations),
            *(t.numpy() for t in (v_means, v_quats, v_scales)),
            v_parts,
        )
        v_viewmats = np.zeros((B, C, 4, 4), np.float32)
        v_viewmats[:, :, :3] = v_parts.sum(1, dtype=np.float64).reshape(B, C, 3, 4)
        return v_means, v_quats, v_scales, None, torch.from_numpy(v_viewmats), None, None, None


def _images(tensor: Tensor) -> np.ndarray:
    """(B, C, ...) as (B * C, ...)."""
    array = tensor.contiguous().numpy()
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


@dataclasses.dataclass(frozen=True, eq=False)
class _TileLists:
    """The Gaussians of every tile, front to back. Arrays as `kernels.bin_tiles` names them."""

    tiles_x: int
    tiles_y: int
    slots: np.ndarray
    starts: np.ndarray
    entries: np.ndarray
    places: np.ndarray


def _tile_lists(
    boxes: np.ndarray, depths: np.ndarray, tile_counts: np.ndarray, image_starts: np.ndarray, width: int, height: int
) -> _TileLists:
    """Memory grows with the number of (Gaussian, tile) pairs."""
    images = len(image_starts) - 1
    tiles_x, tiles_y = -(-width // kernels.TILE), -(-height // kernels.TILE)
    slots = np.zeros(len(tile_counts) + 1, np.int64)
    np.cumsum(tile_counts, out=slots[1:])
    lists = _TileLists(
        tiles_x,
        tiles_y,
        slots,
        np.zeros(images * tiles_x * tiles_y + 1, np.int64),
        np.empty(slots[-1], np.int32),
        np.empty(slots[-1], np.int32),
    )
    run(
        kernels.bin_tiles, images, boxes, depths, tile_counts, slots, image_starts, tiles_x, tiles_y, lists.starts,
        lists.entries, lists.places,
    )  # fmt: skip
    return lists


class _Composite(torch.autograd.Function):
    """Alpha compositing of projected Gaussians; `shape` holds the same Gaussians as the kernels want them."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        backgrounds: Tensor | None,
        shape: np.ndarray,
        lists: _TileLists,
        size: tuple[int, int, int],
        absolute_of: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        images, height, width = size
        conics, colors, opacities = conics.contiguous(), colors.contiguous(), opacities.contiguous()
        D = colors.shape[-1]
        image, alphas = torch.empty(images, height, width, D), torch.empty(images, height, width)
        tiles = images * lists.tiles_x * lists.tiles_y
        state = np.empty((tiles, 2 * kernels.TILE_PIXELS), np.float32)
        behind = torch.empty(0, D) if backgrounds is None else backgrounds.contiguous()
        run(
            kernels.composite_for(D), tiles, shape, colors.numpy().reshape(-1, D), behind.numpy(), lists.starts,
            lists.entries, lists.tiles_x, lists.tiles_y, image.numpy(), alphas.numpy(), state,
        )  # fmt: skip
        ctx.save_for_backward(conics, colors, opacities, behind, alphas)
        ctx.kept = shape, lists, state, absolute_of
        ctx.set_materialize_grads(False)
        return image, alphas[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        v_image, v_alphas = grads
        conics, colors, opacities, behind, alphas = ctx.saved_tensors
        shape, lists, state, absolute_of = ctx.kept
        lead, D = colors.shape[:-1], colors.shape[-1]
        v_image = v_image.contiguous() if v_image is not None else torch.zeros(*alphas.shape, D)
        v_alphas = torch.empty(0, 0, 0) if v_alphas is None else v_alphas.reshape(alphas.shape).contiguous()
        wanted = absolute_of is not None
        row = kernels.MOMENTS + (2 if wanted else 0) + D
        # `gather` reads whole vectors, past the end of the last row
        parts = np.empty((len(lists.entries) + 1 + 16 // row, row), np.float32)
        conics, opacities = conics.numpy().reshape(-1, 3), opacities.numpy().reshape(-1)
        run(
            kernels.composite_backward_for(D, wanted), len(state), shape, colors.numpy().reshape(-1, D), conics,
            behind.numpy(), lists.starts, lists.entries, lists.tiles_x, lists.tiles_y, state, v_image.numpy(),
            v_alphas.numpy(), parts,
        )  # fmt: skip
        count = len(opacities)
        v_means2d, v_conics = np.empty((count, 2), np.float32), np.empty((count, 3), np.float32)
        v_opacities, v_colors = np.empty(count, np.float32), np.empty((count, D), np.float32)
        v_absolute = np.empty((count if wanted else 0, 2), np.float32)
        run(
            kernels.gather, -(-count // kernels.CHUNK), lists.slots, lists.places, parts, conics, opacities, v_means2d,
            v_conics, v_opacities, v_colors, v_absolute,
        )  # fmt: skip
        if wanted:
            absolute_of.absgrad = torch.from_numpy(v_absolute).reshape(*lead, 2)
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = ((1.0 - alphas[..., None]) * v_image).sum((1, 2))
        return (
            *(torch.from_numpy(v).reshape(*lead, *v.shape[1:]) for v in (v_means2d, v_conics, v_colors, v_opacities)),
            v_backgrounds,
            *[None] * 4,
        )
