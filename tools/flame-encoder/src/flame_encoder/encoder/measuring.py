"""How far a trained encoder strays: its answers on drawn people that it has not seen, two pictures each."""

import numpy as np
import torch
from torch.utils.data import Dataset

from flame_encoder.encoder import identity, samples, vector
from flame_encoder.encoder.identity import Measured
from flame_encoder.encoder.network import EidolonEncoder
from flame_encoder.encoder.samples import Item, Synthetic
from flame_encoder.encoder.vector import Layout
from flame_encoder.report import Report, unreported

BATCH = 32


@torch.no_grad()
def looked(network: EidolonEncoder, people: Dataset[Item], report: Report = unreported) -> np.ndarray:
    """What the backbone sees in all samples (N, n), float16."""
    network.eval()
    found = []
    count = len(people)  # type: ignore[arg-type]
    for first in range(0, count, BATCH):
        batch = samples.collate([people[i] for i in range(first, min(first + BATCH, count))])
        batch = batch.to(network.mean.device)
        found.append(network.look(batch.images, batch.points).half().cpu().numpy())
        report(min(first + BATCH, count), "")
    return np.concatenate(found)


@torch.no_grad()
def measure(network: EidolonEncoder, layout: Layout, people: Synthetic, report: Report = unreported) -> Measured:
    """Measure on samples 2k and 2k + 1 of `people`, of whom there must be more than a few."""
    truths, answers = [], []
    count = len(people) // 2 * 2
    for first in range(0, count, BATCH):
        batch = samples.collate([people[i] for i in range(first, min(first + BATCH, count))])
        batch = batch.to(network.mean.device)
        answers.append(network(batch.images, batch.points).cpu())
        truths.append(batch.vectors.cpu())
        report(min(first + BATCH, count), "")
    truth, found = torch.cat(truths), torch.cat(answers)
    who = vector.identity_of(layout, found).unflatten(0, (-1, 2))
    true = vector.identity_of(layout, truth)[::2]
    return identity.measure(true.double().numpy(), who.double().numpy(), (found - truth).double().numpy())
