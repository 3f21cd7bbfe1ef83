"""Training of the fusion model on labelled sequences, and its export as TorchScript."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError, runs, settings
from recon4d.files import sha256, write_text, write_torch
from torch import Tensor
from torch.nn import functional

from feat_extract import model_file
from feat_extract.clips import Batch, Streams, folder_of, load_clip, open_streams, stack, take
from feat_extract.config import Config
from feat_extract.fusion import Fusion, centred
from feat_extract.labels import read_labels
from feat_extract.scores import scores

LAST = "last.pt"  # beside the checkpoint: what a stopped run goes on from
COMPARED = ("classes", "thresholds", "sequences", "model", "train")  # settings that a resumed run must share


def scales(batch: Batch) -> dict[str, Tensor]:
    """Typical size of a difference from a clip's mean, per feature; one number for crops."""
    inputs, mask = batch
    result = {}
    for name, values in inputs.items():
        squares = centred(values.flatten(2), mask).square()[mask]
        scale = squares.mean().sqrt() if name == "crops" else squares.mean(0).sqrt()
        # A number that hardly moves in training must not blow up when it moves later.
        result[name] = scale.clamp_min(max(0.05 * squares.mean().sqrt().item(), 1e-6))
    return result


def build(config: Config, sizes: dict[str, Tensor]) -> Fusion:
    """A model of the config's size for features of these scales, at the start of its training."""
    model = config.model
    return Fusion(
        sizes,
        len(config.classes),
        model.width,
        model.heads,
        model.layers,
        model.dropout,
        config.sequences.length,
    )


def split_people(people: list[str], share: float, seed: int) -> set[str]:
    """The people to validate on: about `share` of all, none where there are fewer than two."""
    everyone = sorted(set(people))
    count = min(round(share * len(everyone)) or int(share > 0), len(everyone) - 1)
    return set(random.Random(seed).sample(everyone, max(count, 0)))


@dataclass(frozen=True, eq=False)
class Data:
    """The labelled sequences, in memory. batch: of all N. truth: (N, C) 0 and 1. rows: those that are learned from.
    held: those of the people to validate on."""

    streams: Streams
    batch: Batch
    truth: Tensor
    rows: Tensor
    held: Tensor


def read_data(config: Config) -> Data:
    """The labelled sequences, of the split `train` where the labels have splits.

    Raises InputError for no labels, labels without files, and features of different sizes.
    """
    labels = read_labels(Path(config.dataset) / config.labels, config.classes)
    names = [name for name, (_, row) in labels.items() if row.get("split", "train") == "train"]
    if not names:
        raise InputError(f"{config.labels} has no sequence of the split train; add some")
    streams = open_streams(config)
    batch = stack([load_clip(name, streams, config) for name in names])
    truth = torch.from_numpy(np.stack([labels[name][0] for name in names])).float()
    people = [labels[name][1].get("identity", name) for name in names]
    chosen = split_people(people, config.train.validation, config.train.seed)
    is_held = torch.tensor([person in chosen for person in people])
    return Data(streams, batch, truth, (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0])


def train(
    config: Config,
    device: torch.device,
    resume: bool = False,
    force: bool = False,
    report: Callable[[int, str], None] = lambda epoch, text: None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on the labelled sequences and write the checkpoint; a summary.

    The epoch with the best macro F1 on held-out people is exported; without any, the last one. Beside the checkpoint
    are config.yaml, train.json with the history, and last.pt, from which `resume` goes on: the result is that of a run
    without a stop.

    Args:
        resume: go on with a stopped run; where there is none, begin one.
        force: replace an earlier run.
        report: called after each epoch with its number and what came of it.

    Raises:
        InputError: as `read_data`; an output that exists; a run to resume that had other settings.
    """
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    checkpoint = Path(config.checkpoint)
    folder, last = checkpoint.parent, checkpoint.parent / LAST
    data = read_data(config)
    torch.manual_seed(config.train.seed)
    model = build(config, scales(take(data.batch, data.rows, torch.device("cpu")))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.train.rate, weight_decay=config.train.weight_decay)
    state: dict[str, Any] = {"epoch": 0, "best": [-1.0, 0.0], "best_epoch": 0, "best_model": {}, "history": []}
    written = (checkpoint.name, "config.yaml", "train.json", LAST)
    read = [Path(config.dataset) / config.labels, *(folder_of(config, stream) for stream in data.streams.files)]
    with runs.claim(folder, "feat-extract train", force=force, resume=resume, inputs=read, names=written) as claimed:
        if claimed.resumed:
            state = resumed_state(last, config, model, optimizer)
        else:
            if resume:
                log(f"{folder} holds no training to resume; it begins anew")
            settings.write(folder / "config.yaml", config)
        for epoch in range(state["epoch"], config.train.epochs):
            found = _learn(model, optimizer, data, epoch, config, device)
            # Without anybody to validate on the last epoch is the best.
            quality = [found["validation_f1"], -found["validation_loss"]] if len(data.held) else [0.0, float(epoch)]
            if quality > state["best"]:
                state |= {"best": quality, "best_epoch": epoch + 1}
                state["best_model"] = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            state |= {"epoch": epoch + 1, "history": [*state["history"], found]}
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": config.model_dump()}
            write_torch(last, {**state, **saved})
            claimed.keep()
            validated = f" F1 {found['validation_f1']:.3f}" if len(data.held) else ""
            report(epoch + 1, f"loss {found['loss']:.3f}{validated}")
        model.load_state_dict(state["best_model"])
        model_file.write(model.cpu().eval(), config, data.streams, data.batch, checkpoint)
        write_text(folder / "train.json", json.dumps(state["history"], indent=2) + "\n")
    return {
        "sequences": len(data.rows),
        "validation_sequences": len(data.held),
        "parameters": sum(p.numel() for p in model.parameters()),
        "best": state["history"][state["best_epoch"] - 1],
        "checkpoint": str(checkpoint),
        "sha256": sha256(checkpoint),
    }


def _learn(
    model: Fusion, optimizer: torch.optim.Optimizer, data: Data, epoch: int, config: Config, device: torch.device
) -> dict[str, float]:
    """One epoch: its number, loss and, with people to validate on, their macro F1 and loss."""
    # Each epoch has its own seed, so that a resumed run repeats what the other would have done.
    torch.manual_seed(1000 * config.train.seed + epoch)
    for group in optimizer.param_groups:
        group["lr"] = config.train.rate * _schedule(epoch / config.train.epochs)
    found: dict[str, float] = {"epoch": epoch + 1, "loss": _train_epoch(model, optimizer, data, config, device)}
    if len(data.held):
        f1, loss = _validate(model, data, config, device)
        found |= {"validation_f1": f1, "validation_loss": loss}
    return found


def _schedule(share: float) -> float:
    """A tenth of the run up, then a half cosine down."""
    return min(0.1 + 9 * share, 0.5 + 0.5 * math.cos(math.pi * share))


def _train_epoch(
    model: Fusion, optimizer: torch.optim.Optimizer, data: Data, config: Config, device: torch.device
) -> float:
    model.train()
    total = 0.0
    for chosen in data.rows[torch.randperm(len(data.rows))].split(config.train.batch):
        inputs, mask = augmented(*take(data.batch, chosen, device), config)
        loss = functional.binary_cross_entropy_with_logits(model(inputs, mask), data.truth[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(data.rows)


def augmented(inputs: dict[str, Tensor], mask: Tensor, config: Config) -> Batch:
    """A batch with what must not matter changed at random: single frames and whole streams are left out, crops are
    mirrored and moved by a few pixels, each clip by its own amount."""
    b = len(mask)
    kept = mask & (torch.rand(mask.shape) >= config.train.frame_dropout).to(mask.device)
    mask = torch.where(kept.any(1, keepdim=True), kept, mask)
    # Every sample keeps one stream, chosen at random, whatever befalls the others.
    spared = torch.randint(len(inputs), (b,))
    result = {}
    for i, (name, values) in enumerate(inputs.items()):
        if name == "crops":
            size = values.shape[-1]
            mirror = 1.0 - 2.0 * (torch.rand(b) < 0.5)
            move = config.train.move * (2 * torch.rand(b, 2) - 1)
            theta = torch.zeros(b, 2, 3)
            theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = mirror, 1.0, 2 * move
            grid = functional.affine_grid(theta, [b, 1, size, size], align_corners=False).to(values.device)
            flat = values.flatten(1, 2)  # all frames of a clip as channels
            values = functional.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(values)
        # Constant inputs are their own mean: the encoder sees no difference.
        keep = (torch.rand(b) >= config.train.stream_dropout) | (spared == i)
        result[name] = values * keep.to(values.device).view(-1, *[1] * (values.ndim - 1))
    return result, mask


@torch.no_grad()
def _validate(model: Fusion, data: Data, config: Config, device: torch.device) -> tuple[float, float]:
    model.eval()
    parts = data.held.split(config.train.batch)
    logits = torch.cat([model(*take(data.batch, chosen, device)).cpu() for chosen in parts])
    said = logits.sigmoid().numpy() >= np.array([config.threshold(name) for name in config.classes])
    truth = data.truth[data.held]
    f1 = scores(truth.numpy(), said, config.classes)["macro_f1"]
    return f1, functional.binary_cross_entropy_with_logits(logits, truth).item()


def resumed_state(path: Path, config: Config, model: Fusion, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Where a stopped run was: its epoch and history; model and optimizer are filled.

    Raises InputError when there is none, or it had other settings.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: there is no training to resume; leave --resume away")
    state = runs.read_checkpoint(path)
    try:
        before, now = state.pop("config"), config.model_dump()
        differ = next((name for name in COMPARED if before[name] != now[name]), None)
        if differ is None:
            model.load_state_dict(state["best_model"])
            model.load_state_dict(state.pop("model"))
            optimizer.load_state_dict(state.pop("optimizer"))
            done, best = len(state["history"]), state["best_epoch"]
            state["best"] = [float(value) for value in state["best"]]
            if not 0 < state["epoch"] == done <= config.train.epochs or not 0 < best <= done:
                raise ValueError("its epochs do not fit")
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a checkpoint of feat-extract train; train again with --force") from error
    if differ is not None:
        raise InputError(f"{path} was trained with other settings in {differ}; restore them or train with --force")
    return state
