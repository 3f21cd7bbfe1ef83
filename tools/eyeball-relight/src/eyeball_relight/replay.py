"""A step of volume rendering, forward and backward, recorded once on a GPU and then replayed (a CUDA graph).

A step is about a thousand small kernels, and launching them one by one takes several times as long as running them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eyeball_relight.batches import Batch


@dataclass(frozen=True, eq=False)
class Recording:
    """What was recorded: where it reads its batch from and writes its terms to; gradients are the parameters' own."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    terms: dict[str, Tensor]
    loss: Tensor
    levels: int  # of the hash grid


def record(
    terms_of: Callable[[Batch], dict[str, Tensor]], batch: Batch, parameters: Sequence[Tensor], levels: int
) -> Recording:
    """Record the terms of a batch of this size and the gradients of their sum. Gradients that are there are dropped."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # what is compiled or cached at its first use
            torch.stack(list(terms_of(batch).values())).sum().backward()
    torch.cuda.current_stream().wait_stream(aside)
    for parameter in parameters:
        parameter.grad = None  # so that a replay sets gradients, and does not add to them
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        terms = terms_of(batch)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
    terms = {name: term.detach() for name, term in terms.items()}  # or they would keep the graph of this stream
    return Recording(graph, batch, terms, loss.detach(), levels)


def replay(recording: Recording, batch: Batch) -> None:
    """Set the recording's terms and loss, and the parameters' gradients, to those of another batch of the same size."""
    recording.batch.copy_(batch)
    recording.graph.replay()
