"""Training of the encoder in stages, on one process or several (Lightning Fabric)."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recon4d.head
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from recon4d import runs, settings
from recon4d.cli import pick_device
from recon4d.files import InputError
from recon4d.head import HeadModel, with_uv
from recon4d.images import write_png
from recon4d.runs import Claim
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from flame_encoder import drawing
from flame_encoder.encoder import feeding, losses, measuring, rendering, samples, trained
from flame_encoder.encoder.config import Config, Stage, check_same, of_run
from flame_encoder.encoder.losses import Judge
from flame_encoder.encoder.network import EidolonEncoder, freeze, set_training
from flame_encoder.encoder.samples import Batch, Item
from flame_encoder.encoder.synthetic import scene
from flame_encoder.report import Log, Progress, unsaid, unseen

FINAL = "eidolon_encoder_final.pth"
CHECKPOINT = "checkpoint.pth"
CONFIG = "config.yaml"
SHOWN = 8  # images in a validation grid


@dataclass(frozen=True)
class Plan:
    """Which stage a step belongs to: steps per epoch and the first step of each stage."""

    stages: list[Stage]
    per_epoch: int
    warmup: int = 0  # steps over which the learning rate rises at the very start

    @property
    def total(self) -> int:
        return sum(stage.epochs for stage in self.stages) * self.per_epoch

    def at(self, step: int) -> tuple[int, float]:
        """Index of the stage, and how far (0 to 1) it is done, at a step."""
        for i, stage in enumerate(self.stages):
            length = stage.epochs * self.per_epoch
            if step < length:
                return i, step / length
            step -= length
        return len(self.stages) - 1, 1.0

    def learning_rate(self, step: int) -> float:
        i, share = self.at(step)
        start, end = self.stages[i].learning_rate, self.stages[i].final_learning_rate
        rate = start if end is None else end + (start - end) * (1 + math.cos(math.pi * share)) / 2
        return rate * min((step + 1) / (self.warmup + 1), 1.0)


def begin_with(network: EidolonEncoder, path: Path) -> None:
    """Take over the weights of an encoder's file; a branch for points that it does not have stays as it is.

    Raises InputError for a file of another backbone or layout.
    """
    try:
        missing, unknown = network.load_state_dict(trained.read(path)["weights"], strict=False)
    except RuntimeError as error:
        raise InputError(f"encoder.start {path} does not fit the backbone and layout of the config") from error
    if unknown or not all(name.startswith("points.") for name in missing):
        raise InputError(f"encoder.start {path} does not fit the backbone and layout of the config")


def start(
    config: Config | None,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    force: bool = False,
    log: Log = unsaid,
    progress: Progress = unseen,
) -> dict[str, Any] | None:
    """Train an encoder; `out` gets config.yaml, checkpoint.pth, runs/ (TensorBoard), pictures and the final encoder.

    With several processes each runs this: Lightning Fabric starts the others by running the program again.

    Args:
        config: of `config.load`; None for that of the run that is resumed.
        resume: go on from the last checkpoint of the run in `out`; a run that was killed before it has one begins anew.
        device: cpu, cuda, cuda:N or auto. devices: processes or GPUs. nodes: machines, under torchrun.
        force: replace what an earlier run wrote.

    Returns:
        Figures of the run: `steps`, the last `losses`, the held-out landmark error in pixels, the `final` file; None
        in all processes but the first.

    Raises:
        InputError: data or settings that do not work; an output that is taken; nothing to resume, or a run of other
            settings, of which the message names the first.
    """
    if resume and force:
        raise InputError("--resume goes on with what --force would replace; leave one of them out")
    out = Path(out)
    begun = of_run(out) if resume and (config is None or (out / CONFIG).is_file()) else None
    if begun is not None and config is not None:
        check_same(config, begun, out / CONFIG)
    chosen = begun or config
    if chosen is None:
        raise ValueError("training needs a config, or a run to resume")
    if resume and (out / CHECKPOINT).is_file():
        trained.read(out / CHECKPOINT)  # says what is wrong with it before anything is touched
    data = chosen.data
    inputs = [chosen.head_model, chosen.landmark_embedding, data.images, data.landmarks, data.cache]
    first = getattr(rank_zero_only, "rank", 0) == 0
    claiming: AbstractContextManager[Claim | None] = nullcontext()  # of several processes the first claims
    if first:
        claiming = runs.claim(out, "flame-encoder train", force=force, resume=resume, inputs=inputs)
    with claiming as claimed:
        resumed = claimed.resumed if claimed is not None else resume and (out / CHECKPOINT).is_file()
        if resume and not resumed and first:
            log("there is no checkpoint to go on from; training begins anew")
        return _train(chosen, out, launched(device, devices, nodes), claimed, resumed, log, progress)


def _train(
    config: Config, out: Path, fabric: Fabric, claimed: Claim | None, resumed: bool, log: Log, progress: Progress
) -> dict[str, Any] | None:
    if not fabric.is_global_zero:
        log, progress = unsaid, unseen
    head = with_uv(recon4d.head.load(config.head_model, config.landmark_embedding))
    world, rank = fabric.world_size, fabric.global_rank
    if config.train.batch_size % world:
        raise InputError(f"train.batch_size {config.train.batch_size} does not divide by the {world} processes")
    training, held_out, photographs = feeding.datasets(config, head, progress)
    own = feeding.photographs_of(config, photographs, len(training), world)
    epoch = (len(training) - (photographs if own else 0)) // (config.train.batch_size - own)
    plan = Plan(config.stages, max(epoch, 1), config.train.warmup)
    torch.manual_seed(config.seed)
    chosen = config.encoder
    fresh = not resumed and chosen.start is None
    network = EidolonEncoder(chosen.backbone, chosen.weights if fresh else "none", config.layout, chosen.points)
    if not resumed and chosen.start is not None:
        begin_with(network, trained.SHIPPED if chosen.start == "shipped" else Path(chosen.start))
    freeze(network, config.encoder.freeze)
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=plan.learning_rate(0), weight_decay=config.train.weight_decay)
    first = 0
    if resumed:
        first = _restore(out / CHECKPOINT, network, optimizer, config, plan.total)
        log(f"resumed at step {first} of {plan.total}")
    wrapped, optimizer = fabric.setup(network, optimizer)
    judge = losses.judge(head, config.layout, config.view, config.train.renderer).to(fabric.device)
    seen = samples.collate([held_out[i] for i in range(len(held_out))]).to(fabric.device)

    def checkpoint(step: int) -> None:
        if fabric.is_global_zero:
            state = _state(network, config, head) | {"optimizer": optimizer.state_dict(), "step": step}
            trained.save(out / CHECKPOINT, state)
            if claimed is not None:
                claimed.keep()

    if fabric.is_global_zero and not resumed:
        settings.write(out / CONFIG, config)
    fabric.barrier()
    writer = SummaryWriter(out / "runs", purge_step=first) if fabric.is_global_zero else None
    kept = config.encoder.freeze == "backbone" and config.train.jitter == 0
    feed: Dataset[Item] = training
    if kept:  # what a frozen backbone sees in a picture is always the same
        with progress("look", len(training)) as report:
            feed = samples.Kept(training, measuring.looked(network, training, report))
    loader = DataLoader(
        feed,
        batch_sampler=list(feeding.batches(len(training), config, first, plan.total, rank, world, photographs)),
        num_workers=config.train.workers,
        collate_fn=samples.collate,
        multiprocessing_context="forkserver" if config.train.workers else None,
    )
    found: dict[str, float] = {}
    stage_before = -1
    set_training(network)
    with progress("train", plan.total) as report:
        for step, batch in enumerate(feeding.said_plainly(loader), first):
            i, _ = plan.at(step)
            weights = config.stages[i].loss_weights
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate(step)
            if i != stage_before and writer:
                log(f"stage {config.stages[i].name}: {config.stages[i].epochs} epochs of {plan.per_epoch} steps")
                writer.add_text("stage", config.stages[i].name, step)
            stage_before = i
            batch = batch.to(fabric.device)
            images = feeding.jittered(batch.images, config.train.jitter, config.seed, step, rank, world)
            given = batch
            if config.encoder.points:
                given = feeding.kept_back(batch, config.train.unseen_points, config.seed, step, rank, world)
            vectors = wrapped(images, given.points, given.seen if kept else None)
            each = losses.terms(judge, vectors, batch, weights)
            loss = losses.total(each, weights)
            optimizer.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(network if world == 1 else wrapped, optimizer, max_norm=10.0)
            optimizer.step()
            done = step + 1
            last = done == plan.total
            if writer and (done % 20 == 0 or last or step == first):
                found = {"total": loss.item()} | {name: term.item() for name, term in each.items()}
                for name, value in found.items():
                    writer.add_scalar(f"loss/{name}", value, done)
                writer.add_scalar("learning_rate", plan.learning_rate(step), done)
                writer.add_scalar("stage_number", i, done)
                report(done, f"{config.stages[i].name} {found['total']:.4f}")
            if writer and (done % config.train.validate_every == 0 or last):
                network.eval()
                validate(network, judge, seen, out, done, writer)
                set_training(network)
            if done % config.train.checkpoint_every == 0 or last:
                checkpoint(done)
    network.eval()
    figures = validate(network, judge, seen, None, plan.total, None)
    if fabric.is_global_zero:
        final = _state(network, config, head)
        if config.data.measured:
            drawn = scene(head, config.layout, config.view)
            people = samples.Synthetic(drawn, 2 * config.data.measured, config.seed + 2_000_000)
            with progress("measure", len(people)) as report:
                final["measured"] = measuring.measure(network, config.layout, people, report).state()
        trained.save(out / FINAL, final)
        if writer:
            writer.close()
    fabric.barrier()
    if not fabric.is_global_zero:
        return None
    return {"steps": plan.total, "losses": found, **figures, "final": str(out / FINAL)}


def _state(network: EidolonEncoder, config: Config, head: HeadModel) -> dict[str, Any]:
    return trained.state_of(network, config.layout, config.view, head.name, config.encoder.backbone)


def _restore(path: Path, network: EidolonEncoder, optimizer: torch.optim.Optimizer, config: Config, last: int) -> int:
    """Load weights and optimizer; the step to go on at."""
    state = trained.read(path)
    if "optimizer" not in state:
        raise InputError(f"{path} holds no training to resume; train again with --force")
    if (state["layout"], state["view"]) != (config.layout.model_dump(), config.view.model_dump()):
        raise InputError(f"{path} was made with another layout or view than the config; train again with --force")
    step = state.get("step")
    if not isinstance(step, int) or not 0 <= step <= last:
        raise InputError(f"{path} is at step {step} of {last}; train again with --force")
    try:
        network.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit the encoder {config.encoder.backbone} of the config") from error
    return step


@torch.no_grad()
def validate(
    network: EidolonEncoder, judge: Judge, batch: Batch, out: Path | None, step: int, writer: SummaryWriter | None
) -> dict[str, float]:
    """Landmark error of held-out samples in pixels and, where the truth is known, millimetres of vertices.

    With `out` and `writer` also a grid of the first images: truth, prediction, landmarks of both.
    """
    vectors = network(batch.images, batch.points)
    parts = judge.layout.split(vectors)
    turned = rendering.turned(judge.points, parts)
    points = losses.landmark_pixels(judge, turned, parts["transl"])
    figures = {"validation_landmark_px": (points - batch.landmarks).norm(dim=-1).mean().item()}
    if batch.known.any():
        goal = rendering.turned(judge.points, judge.layout.split(batch.vectors))
        distance = (turned - goal).norm(dim=-1).mean(1)[batch.known].mean()
        figures["validation_vertices_mm"] = 1000 * distance.item()
    if out is None or writer is None:
        return figures
    for name, value in figures.items():
        writer.add_scalar(name, value, step)
    shown = {name: part[:SHOWN] for name, part in parts.items()}
    image, triangles = rendering.render(judge.head, shown, judge.view)
    sheet = grid(batch.images[:SHOWN], image, triangles >= 0, batch.landmarks[:SHOWN], points[:SHOWN])
    writer.add_image("validation", sheet, step, dataformats="HWC")
    path = out / "validation_images" / f"{step:07d}.png"
    write_png(path, sheet)
    return figures


def grid(images: Tensor, predicted: Tensor, mask: Tensor, truth: Tensor, points: Tensor) -> np.ndarray:
    """Three rows (3 S, B S, 3) uint8: images with landmarks (true green, predicted red), prediction, prediction over.

    Args:
        images, predicted: (B, 3, S, S). mask: (B, S, S) bool. truth, points: (B, 68, 2), pixels.
    """
    shape = (0, 2, 3, 1)
    over = torch.where(mask[:, None], 0.3 * images + 0.7 * predicted, images)
    rows = [(255 * x).round().byte().permute(shape).cpu().numpy() for x in (images, predicted, over)]
    marked = []
    for image, *sets in zip(rows[0], truth.cpu().numpy(), points.cpu().numpy()):
        image = np.ascontiguousarray(image)
        for marks, colour in zip(sets, (drawing.GREEN, drawing.RED)):
            drawing.dot(image, marks, colour)
        marked.append(image)
    return np.vstack([np.hstack(list(row)) for row in (np.stack(marked), rows[1], rows[2])])


def launched(device_name: str, devices: int, nodes: int) -> Fabric:
    """Lightning Fabric, launched: several processes on a CPU, or one per GPU. Raises InputError for GPUs not there."""
    if devices < 1 or nodes < 1:
        raise InputError(f"--devices {devices} and --nodes {nodes} must be at least 1")
    device = pick_device(device_name)
    if device.type == "cuda" and device.index is None and devices > torch.cuda.device_count():
        raise InputError(f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    chosen: int | list[int] = [device.index] if device.type == "cuda" and device.index is not None else devices
    made = Fabric(
        accelerator=device.type, devices=chosen, num_nodes=nodes, strategy="ddp" if devices * nodes > 1 else "auto"
    )
    made.launch()
    return made
