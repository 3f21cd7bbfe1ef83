"""Offline training: batches of images against batches of deformed Gaussians (RGBAvatar, section 3 and offline.yaml)."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recon4d import InputError, splat
from recon4d.cli import progress_bar
from recon4d.files import atomic_path, write_text
from recon4d.head import HeadModel
from torch import Tensor

from gaussian_avatar import avatar as avatars
from gaussian_avatar import capture as captures
from gaussian_avatar.avatar import Avatar, Splats
from gaussian_avatar.capture import Capture
from gaussian_avatar.config import Config, Losses, Rates
from gaussian_avatar.motion import Motion

TRAINED = (
    "means",
    "log_scales",
    "opacity_logits",
    "quats",
    "sh0",
    "mean_basis",
    "quat_basis",
    "sh0_basis",
)


CHECKPOINT = "checkpoint.pt"
COLOUR_STEPS = 20  # after the first pass, colours are initialised every so many steps only: it doubles a step's cost


@dataclass(frozen=True)
class Result:
    """What a run reports."""

    gaussians: int
    images: int
    seconds: float
    images_per_second: float
    unseen: int


def learning_rates(rates: Rates, images: int, total: int) -> dict[str, float]:
    """Adam's learning rate of each attribute after so many images of `total`."""
    position = _log_linear(
        rates.position,
        rates.position_final,
        images / rates.position_images,
        images / rates.position_delay_images if rates.position_delay_images else 1.0,
        rates.position_delay_factor,
    )
    rest = rates.final_factor ** min(images / max(total, 1), 1.0)
    return {
        "means": position,
        "log_scales": rates.scale * rest,
        "opacity_logits": rates.opacity * rest,
        "quats": rates.rotation * rest,
        "sh0": rates.colour * rest,
        "mean_basis": position * rates.basis_position,
        "quat_basis": rates.rotation * rates.basis_rotation * rest,
        "sh0_basis": rates.colour * rates.basis_colour * rest,
        "mlp": rates.mlp * rest,
    }


def _log_linear(start: float, end: float, share: float, delay_share: float, delay_factor: float) -> float:
    """Plenoxels' schedule (Yu et al. 2022): log-linear from start to end, held down by delay_factor in the delay."""
    if start == 0:
        return 0.0
    share = min(share, 1.0)
    delay = delay_factor + (1 - delay_factor) * np.sin(0.5 * np.pi * min(delay_share, 1.0))
    return float(delay * np.exp((1 - share) * np.log(start) + share * np.log(max(end, 1e-12))))


def batch_frames(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """Positions (batch_size,) of one step in the endless sequence of shuffled passes over n frames.

    A function of the step alone, so that a resumed run goes on with the frames an uninterrupted one would have.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    order = {epoch: np.random.default_rng((seed, 1, epoch)).permutation(n) for epoch in np.unique(places // n)}
    return np.array([order[place // n][place % n] for place in places])


def backgrounds(step: int, batch_size: int, seed: int) -> Tensor:
    """One random colour (batch_size, 3) per image of a step."""
    return torch.from_numpy(np.random.default_rng((seed, 2, step)).random((batch_size, 3), np.float32))


@dataclass(frozen=True)
class View:
    """A camera: world to camera (4, 4) or (B, 4, 4), intrinsics (3, 3), image size in pixels."""

    world_to_camera: Tensor
    K: Tensor
    width: int
    height: int


def rasterize(splats: Splats, view: View, background: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Render B frames, each with its own Gaussians, in one call.

    Args:
        background: (B, D), or None for black.

    Returns:
        Colours (B, H, W, D) and opacity (B, H, W, 1).
    """
    batch = len(splats.means)
    colors, alphas, _ = splat.rasterize(
        splats.means,
        splats.quats,
        splats.scales,
        splats.opacities,
        splats.colors,
        view.world_to_camera.expand(batch, 4, 4)[:, None],
        view.K.expand(batch, 1, 3, 3),
        view.width,
        view.height,
        backgrounds=None if background is None else background[:, None],
        packed=False,
    )
    return colors[:, 0], alphas[:, 0]


def covered_colours(splats: Splats, view: View, target: Tensor) -> tuple[Tensor, Tensor]:
    """The colours of the pixels each Gaussian covers, weighted by its share in them (section 3.3 of the paper).

    The share w_ip of Gaussian i in pixel p is the derivative of the render with respect to its colour, so both sums
    are one vector-Jacobian product. Pixels count by the head's mask: the background is not the head's colour.

    Args:
        target: RGBA uint8 (B, H, W, 4).

    Returns:
        Mean colours (N, 3) and the summed weights (N,), over all frames.
    """
    fixed = {name: value.detach() for name, value in vars(splats).items()}
    probe = fixed["means"].new_zeros(*fixed["means"].shape[:2], 4, requires_grad=True)
    image, _ = rasterize(Splats(**(fixed | {"colors": probe})), view)
    pixels = target.float() / 255
    pixels = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    (sums,) = torch.autograd.grad(image, probe, pixels)
    sums = sums.sum(0)
    return sums[:, :3] / sums[:, 3:].clamp_min(1e-8), sums[:, 3]


def initialise_colours(avatar: Avatar, splats: Splats, view: View, target: Tensor, threshold: float) -> bool:
    """Set the colour of Gaussians that are seen for the first time; whether there were any."""
    colours, weights = covered_colours(splats, view, target)
    fresh = (weights > threshold) & ~avatar.seen
    with torch.no_grad():
        avatar.sh0[fresh] = (colours[fresh] - 0.5) / avatars.SH0
        avatar.seen[fresh] = True
    return bool(fresh.any())


def loss_terms(
    avatar: Avatar,
    weights: Tensor,
    image: Tensor,
    alpha: Tensor,
    target: Tensor,
    mask: Tensor,
    losses: Losses,
    images: int,
    init_log_scale: Tensor,
    pairs: Tensor,
) -> dict[str, Tensor]:
    """Weighted loss terms, those of weight 0 left out. Images (B, H, W, 3), alpha and mask (B, H, W, 1)."""
    terms = {"l1": losses.l1 * (image - target).abs().mean()}
    if losses.ssim:
        terms["ssim"] = losses.ssim * (1 - ssim(image.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)))
    if losses.lpips and images >= losses.lpips_start:
        from recon4d import metrics  # torchmetrics takes seconds to import

        terms["lpips"] = losses.lpips * metrics.lpips(image.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)).mean()
    if losses.alpha:
        terms["alpha"] = losses.alpha * (alpha - mask).abs().mean()
    if losses.sparsity:
        terms["sparsity"] = losses.sparsity * weights.abs().mean()
    if losses.orthogonality:
        terms["orthogonality"] = losses.orthogonality * orthogonality(avatar)
    if losses.offset:
        terms["offset"] = losses.offset * (avatar.means / init_log_scale.exp()).square().mean()
    if losses.size:
        excess = (avatar.log_scales - init_log_scale - np.log(4)).clamp_min(0)
        terms["size"] = losses.size * excess.square().mean()
    if losses.smooth:
        relative = [avatar.log_scales - init_log_scale, avatar.means / init_log_scale.exp()]
        attributes = torch.cat([avatar.sh0, avatar.opacity_logits[:, None], *relative], 1)
        terms["smooth"] = losses.smooth * (attributes[pairs[:, 0]] - attributes[pairs[:, 1]]).square().mean()
    if losses.opaque:
        terms["opaque"] = losses.opaque * avatar.opacity_logits.neg().sigmoid().mean()
    if losses.basis:
        terms["basis"] = losses.basis * (
            (avatar.mean_basis / init_log_scale.exp()).square().mean()
            + avatar.quat_basis.square().mean()
            + avatar.sh0_basis.square().mean()
        )
    return terms


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) of (B, C, H, W) images, with an 11-pixel box window.

    A box instead of the Gaussian window: average pooling is several times faster on a CPU, and as a loss it serves
    the same; `recon4d.metrics.ssim` is what `metrics` reports.
    """
    pool = torch.nn.functional.avg_pool2d
    stacked = pool(torch.cat([a, b, a * a, b * b, a * b], 1), 11, 1)
    mean_a, mean_b, aa, bb, ab = stacked.chunk(5, 1)
    c1, c2 = 0.01**2, 0.03**2
    covariance = ab - mean_a * mean_b
    variances = aa - mean_a.square() + bb - mean_b.square()
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a.square() + mean_b.square() + c1) * (variances + c2))).mean()


def orthogonality(avatar: Avatar) -> Tensor:
    """Norm of the upper triangle of the basis vectors' cosine matrix, summed over position, rotation and colour."""
    total = avatar.means.new_zeros(())
    for basis in (avatar.mean_basis, avatar.quat_basis, avatar.sh0_basis):
        vectors = torch.nn.functional.normalize(basis.flatten(1), dim=1)
        total = total + torch.triu(vectors @ vectors.T, diagonal=1).norm()
    return total


# ------------------------------------------------------------------------------------------------------- memory


def check(config: Config, capture: Capture, head: HeadModel, frames: np.ndarray, device: torch.device) -> None:
    """Raise InputError for a batch larger than the number of frames, or a run that would not fit into memory."""
    batch_size = config.train.batch_size
    if batch_size > len(frames):
        raise InputError(
            f"train.batch_size {batch_size} is larger than the {len(frames)} training frames; "
            f"lower it with --set train.batch_size={len(frames)}"
        )
    check_memory(config, head, len(frames), capture.width, capture.height, device)


def check_memory(config: Config, head: HeadModel, n_images: int, width: int, height: int, device: torch.device) -> None:
    """Raise InputError when the run would not fit into memory, saying what would."""
    available = available_bytes(device)

    def needed(gaussians: float) -> float:
        return memory_needed(config, gaussians, n_images, width, height, len(head.v_template), device)

    gaussians = avatars.texel_count(head, config.model.tex_size)
    if needed(gaussians) <= available:
        return
    size = config.model.tex_size
    wanted = f"needs about {needed(gaussians) / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free on {device}"
    fits = size
    while fits >= 16 and needed(gaussians * (fits / size) ** 2) > available:
        fits = int(fits * 0.95)
    if fits >= 16:
        raise InputError(f"model.tex_size {size} {wanted}; {fits} fits (--set model.tex_size={fits})")
    raise InputError(f"the training {wanted}; use --no-preload, a smaller data.image_size or train.batch_size")


def memory_needed(
    config: Config,
    gaussians: float,
    n_images: int,
    width: int,
    height: int,
    n_vertices: int,
    device: torch.device,
) -> float:
    """Bytes a run takes at its peak, roughly: images, posed meshes, parameters with Adam's moments, one batch."""
    batch = config.train.batch_size
    images = n_images * width * height * 4 if config.data.preload and device.type == "cpu" else 0
    vertices = n_images * n_vertices * 12
    parameters = gaussians * (14 + 10 * config.model.basis) * 4 * 4
    activations = batch * gaussians * 4 * 150 + batch * width * height * 4 * 60
    return images + vertices + parameters + activations


def available_bytes(device: torch.device) -> float:
    """Free memory of the device; on a CPU what the system or its container has left."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text())
        statistics = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        cache = float(statistics.get("inactive_file", 0))  # counted as used, but given back when needed
        limits += [float(limit) - used + cache] if limit != "max" else []
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or no container limit
    return min(limits, default=8.0 * 2**30)


# ------------------------------------------------------------------------------------------------------ the loop


def train(
    config: Config,
    capture: Capture,
    motion: Motion,
    head: HeadModel,
    frames: np.ndarray,
    images: Tensor | None,
    output: Path,
    device: torch.device,
    resume: bool = False,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> Result:
    """Train an avatar on the chosen frames; write `model.ply`, `speed.txt` and `checkpoint.pt` into `output`.

    Args:
        images: (n, H, W, 4) uint8 of the frames, or None to read them as they are needed.
        resume: go on from `checkpoint.pt`.

    Raises:
        InputError: unusable images, a checkpoint that does not fit.
    """
    batch_size, total = config.train.batch_size, config.train.iterations
    avatar = avatars.new(
        head,
        config.model.tex_size,
        motion.inputs.shape[1],
        config.model.basis,
        config.model.hidden,
        config.model.init_scale,
        config.model.init_opacity,
        torch.Generator().manual_seed(config.seed),
    ).to(device)
    for name in TRAINED:
        getattr(avatar, name).requires_grad_(True)
    init_log_scale = avatar.log_scales.detach()[:, :1].clone()
    pairs = avatars.neighbours(head, config.model.tex_size).to(device)
    optimizer = torch.optim.Adam(
        [{"params": [getattr(avatar, name)], "name": name} for name in TRAINED]
        + [{"params": list(avatar.mlp.parameters()), "name": "mlp"}],
        lr=0.0,
        eps=config.train.rates.epsilon,
        fused=True,
    )
    first, seconds = 0, 0.0
    if resume:
        first, seconds = load_checkpoint(output / CHECKPOINT, avatar, optimizer)
        log(f"resumed at image {first * batch_size}")
    log(f"{len(avatar)} Gaussians, {len(frames)} training frames of {capture.width}x{capture.height}, {total} images")

    head = head.to(device)
    vertices, inputs = motion.vertices[frames].to(device), motion.inputs[frames].to(device)
    view = View(motion.world_to_camera.to(device), motion.K.to(device), capture.width, capture.height)
    first_pass = -(-len(frames) // batch_size)  # steps until every frame has been seen once
    steps = range(first, -(-total // batch_size))
    writer = _tensorboard_writer(output) if tensorboard else None

    def deform(chosen: Tensor, blend: bool) -> tuple[Splats, Tensor]:
        return avatars.deform(
            avatar,
            head,
            vertices[chosen],
            inputs[chosen],
            view.world_to_camera,
            blend,
            config.model.one_sided,
        )

    with progress_bar("training", total) as show:
        started = time.perf_counter()
        for step, (chosen, pixels, background) in zip(steps, _batches(config, capture, frames, images, steps, device)):
            done = step * batch_size
            for group, rate in zip(optimizer.param_groups, learning_rates(config.train.rates, done, total).values()):
                group["lr"] = rate
            blend = done >= config.train.blend_start
            splats, weights = deform(chosen, blend)
            if (step < first_pass or step % COLOUR_STEPS == 0) and initialise_colours(
                avatar, splats, view, pixels, config.train.colour_weight
            ):
                splats, weights = deform(chosen, blend)
            target, mask = captures.composite(pixels, background)
            image, alpha = rasterize(splats, view, background)
            terms = loss_terms(
                avatar, weights, image, alpha, target, mask, config.train.losses, done, init_log_scale, pairs
            )
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            done += batch_size
            last = step + 1 == steps.stop
            elapsed = time.perf_counter() - started
            speed = (step + 1 - first) * batch_size / elapsed
            if step % 20 == 0 or last:
                show(min(done, total), f"loss {float(loss.detach()):.4f}, {speed:.0f} images/s")
                if writer is not None:
                    for name, value in (terms | {"total": loss}).items():
                        writer.add_scalar(f"loss/{name}", float(value.detach()), done)
                    writer.add_scalar("images_per_second", speed, done)
            if (
                not last
                and done // config.train.checkpoint_every > (done - batch_size) // config.train.checkpoint_every
            ):
                save_checkpoint(output / CHECKPOINT, avatar, optimizer, step + 1, seconds + elapsed)
                log(f"image {done}: loss {float(loss.detach()):.4f}, {speed:.0f} images/s")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - started
    if writer is not None:
        writer.close()

    images_done = max(steps.stop, first) * batch_size
    save_checkpoint(output / CHECKPOINT, avatar, optimizer, max(steps.stop, first), seconds)
    avatars.write_ply(output / "model.ply", avatar)
    result = Result(
        gaussians=len(avatar),
        images=images_done,
        seconds=seconds,
        images_per_second=images_done / max(seconds, 1e-9),
        unseen=int((~avatar.seen).sum()),
    )
    write_text(output / "speed.txt", f"Training FPS: {result.images_per_second:.2f}\n")
    return result


def _batches(
    config: Config,
    capture: Capture,
    frames: np.ndarray,
    stored: Tensor | None,
    steps: range,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Positions (B,), images (B, H, W, 4) uint8 and backgrounds (B, 3) of each step, on the device, one step ahead."""
    size, seed = config.train.batch_size, config.seed
    pin = device.type == "cuda"

    def fetch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = batch_frames(step, size, len(frames), seed)
        chosen = torch.from_numpy(positions)
        if stored is None:
            images = torch.from_numpy(np.stack(list(captures.read_images(capture, frames[positions]))))
        else:
            images = stored[chosen]
        batch = (chosen, images, backgrounds(step, size, seed))
        return tuple(x.pin_memory().to(device, non_blocking=True) for x in batch) if pin else batch

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(fetch, steps.start) if len(steps) else None
        for step in steps:
            batch = ahead.result()
            ahead = pool.submit(fetch, step + 1)
            yield batch


def _tensorboard_writer(output: Path):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output))


# -------------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(path: Path, avatar: Avatar, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Everything a later `load_checkpoint` needs to go on at `step`, atomically.

    No random state is in it: frames and backgrounds are functions of the step.
    """
    state = {
        "step": step,
        "seconds": seconds,
        "attributes": {name: getattr(avatar, name).detach() for name in TRAINED},
        "seen": avatar.seen,
        "mlp": avatar.mlp.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, avatar: Avatar, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Fill avatar and optimizer from a checkpoint; the step to go on at and the seconds spent so far.

    Raises InputError for a missing or broken file, or one of another model size.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is nothing to resume; leave --resume away")
    try:
        state = torch.load(path, map_location=avatar.means.device, weights_only=True)
        with torch.no_grad():
            for name, value in state["attributes"].items():
                getattr(avatar, name).copy_(value)
            avatar.seen.copy_(state["seen"])
        avatar.mlp.load_state_dict(state["mlp"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["seconds"])
    except Exception as error:  # truncated archives and foreign shapes raise many types
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} does not fit this run ({reason}); train anew with --force") from error
