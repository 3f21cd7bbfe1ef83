"""Training of the fusion model on labelled sequences, and its export as TorchScript."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recon4d import InputError
from recon4d.files import atomic_path, sha256, write_text
from torch import Tensor
from torch.nn import functional

from feat_extract import config as settings
from feat_extract.clips import Clip, Streams, load_clip, open_streams
from feat_extract.config import Config
from feat_extract.fusion import Fusion, centred
from feat_extract.labels import read_labels
from feat_extract.scores import scores

FORMAT = "feat-extract-1"
EXTRA = "feat_extract.json"  # inside the TorchScript file: what the model was made for

Batch = tuple[dict[str, Tensor], Tensor]  # inputs and mask of Fusion.forward


def stack(clips: list[Clip]) -> Batch:
    """Inputs and mask of a batch of clips. Raises InputError when their features have different lengths."""
    inputs = {}
    for stream in clips[0].inputs:
        shape = clips[0].inputs[stream].shape
        for clip in clips:
            if clip.inputs[stream].shape != shape:
                raise InputError(
                    f"{stream} of {clip.name} has {clip.inputs[stream].shape[1]} numbers per frame, of "
                    f"{clips[0].name} {shape[1]}; extract all with one backbone or regressor"
                )
        inputs[stream] = torch.from_numpy(np.stack([clip.inputs[stream] for clip in clips]))
    return inputs, torch.from_numpy(np.stack([clip.mask for clip in clips]))


def take(batch: Batch, rows: Tensor, device: torch.device) -> Batch:
    return {name: values[rows].to(device) for name, values in batch[0].items()}, batch[1][rows].to(device)


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


def train(
    config: Config,
    device: torch.device,
    resume: bool = False,
    report: Callable[[int, str], None] = lambda epoch, text: None,
) -> dict[str, Any]:
    """Train on the labelled sequences (of the split `train` where the labels have splits); write the checkpoint.

    The epoch with the best macro F1 on held-out people is exported; without any, the last one. `last.pt` beside the
    checkpoint is what `resume` goes on from: the result is that of a run without a stop. Returns a summary.

    Raises:
        InputError: no labels, labels without files, features of different sizes, nothing to resume.
    """
    checkpoint = Path(config.checkpoint)
    labels = read_labels(Path(config.dataset) / config.labels, config.classes)
    names = [name for name, (_, row) in labels.items() if row.get("split", "train") == "train"]
    if not names:
        raise InputError(f"{config.labels} has no sequence of the split train; add some")
    streams = open_streams(config)
    clips = [load_clip(name, streams, config) for name in names]
    data = stack(clips)
    truth = torch.from_numpy(np.stack([labels[name][0] for name in names])).float()
    people = [labels[name][1].get("identity", name) for name in names]
    held = split_people(people, config.train.validation, config.train.seed)
    held_rows = torch.tensor([i for i, person in enumerate(people) if person in held], dtype=torch.long)
    rows = torch.tensor([i for i, person in enumerate(people) if person not in held], dtype=torch.long)

    torch.manual_seed(config.train.seed)
    model = build(config, scales(take(data, rows, torch.device("cpu")))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.train.rate, weight_decay=config.train.weight_decay)
    last = checkpoint.parent / "last.pt"
    state: dict[str, Any] = {"epoch": 0, "best": [-1.0, 0.0], "best_epoch": 0, "best_model": {}, "history": []}
    if resume:
        state = _read_state(last, config)
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
    else:
        settings.write(checkpoint.parent / "config.yaml", config)

    for epoch in range(state["epoch"], config.train.epochs):
        # Each epoch has its own seed, so that a resumed run repeats what the other would have done.
        torch.manual_seed(1000 * config.train.seed + epoch)
        rate = config.train.rate * _schedule(epoch / config.train.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _train_epoch(model, optimizer, data, truth, rows, config, device)
        found: dict[str, float] = {"epoch": epoch + 1, "loss": loss}
        quality = [0.0, -float(epoch)] if not len(held_rows) else None
        if quality is None:
            f1, held_loss = _validate(model, data, truth, held_rows, config, device)
            found |= {"validation_f1": f1, "validation_loss": held_loss}
            quality = [f1, -held_loss]
        if not len(held_rows) or quality > state["best"]:
            state |= {"best": quality, "best_epoch": epoch + 1}
            state["best_model"] = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
        state |= {"epoch": epoch + 1, "history": [*state["history"], found]}
        with atomic_path(last) as temporary:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": config.model_dump()}
            torch.save({**state, **saved}, temporary)
        report(epoch + 1, f"loss {loss:.3f} " + (f"F1 {found['validation_f1']:.3f}" if len(held_rows) else ""))

    model.load_state_dict(state["best_model"])
    export(model.cpu().eval(), config, streams, data, checkpoint)
    write_text(checkpoint.parent / "train.json", json.dumps(state["history"], indent=2) + "\n")
    best = state["history"][state["best_epoch"] - 1]
    return {
        "sequences": len(rows),
        "validation_sequences": len(held_rows),
        "parameters": sum(p.numel() for p in model.parameters()),
        "best": best,
        "checkpoint": str(checkpoint),
        "sha256": sha256(checkpoint),
    }


def _schedule(share: float) -> float:
    """A tenth of the run up, then a half cosine down."""
    return min(0.1 + 9 * share, 0.5 + 0.5 * math.cos(math.pi * share))


def _train_epoch(
    model: Fusion,
    optimizer: torch.optim.Optimizer,
    data: Batch,
    truth: Tensor,
    rows: Tensor,
    config: Config,
    device: torch.device,
) -> float:
    model.train()
    total = 0.0
    for chosen in rows[torch.randperm(len(rows))].split(config.train.batch):
        inputs, mask = augmented(*take(data, chosen, device), config)
        loss = functional.binary_cross_entropy_with_logits(model(inputs, mask), truth[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(rows)


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
def _validate(
    model: Fusion, data: Batch, truth: Tensor, rows: Tensor, config: Config, device: torch.device
) -> tuple[float, float]:
    model.eval()
    logits = torch.cat([model(*take(data, chosen, device)).cpu() for chosen in rows.split(config.train.batch)])
    said = logits.sigmoid().numpy() >= np.array([config.threshold(name) for name in config.classes])
    f1 = scores(truth[rows].numpy(), said, config.classes)["macro_f1"]
    return f1, functional.binary_cross_entropy_with_logits(logits, truth[rows]).item()


def _read_state(path: Path, config: Config) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: there is no training to resume; leave --resume away")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken archive raises errors of many kinds
        raise InputError(f"{path} is not a readable checkpoint ({type(error).__name__}); train again") from error
    if not isinstance(state, dict) or "config" not in state:
        raise InputError(f"{path} is not a checkpoint of feat-extract train; train again")
    before, now = state.pop("config"), config.model_dump()
    for section in ("classes", "thresholds", "sequences", "model", "train"):
        if before.get(section) != now[section]:
            raise InputError(f"{path} was trained with other settings in {section}; restore them or train with --force")
    return state


def export(model: Fusion, config: Config, streams: Streams, data: Batch, path: Path) -> None:
    """Write the model as TorchScript, atomically, with a note on what it reads and answers."""
    note = {
        "format": FORMAT,
        "classes": config.classes,
        "length": config.sequences.length,
        "streams": {name: {**kind, "dim": data[0][name].shape[2]} for name, kind in streams.kinds.items()},
    }
    script = torch.jit.script(model)
    with atomic_path(path) as temporary:
        torch.jit.save(script, temporary, _extra_files={EXTRA: json.dumps(note)})
