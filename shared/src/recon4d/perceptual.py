"""The perceptual distance LPIPS on AlexNet (Zhang et al. 2018, version 0.1); its weights ship with the library."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recon4d import shipped

ASSET = "alexnet_lpips.npz"
SHA256 = "1fb02e6533cb5fb0fe99b2577dd026a8282dd3ff8829dc0fe30515a63bfa5f22"
INSTEAD = "another backbone"
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's colours in [-1, 1]
STEPS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride and padding of each convolution
SMALLEST = 31  # pixels, of which the third convolution still sees three
POOLED = (1, 2)  # convolutions before which the maximum of 3x3 is taken, every second one


class AlexDistance(torch.nn.Module):
    """LPIPS of pictures in [-1, 1]: answers (B, 1, 1, 1) as the package `lpips` does; differentiable in both.

    Raises InputError where the weights are missing from the installation or others than those that belong there.
    """

    def __init__(self) -> None:
        super().__init__()
        with np.load(io.BytesIO(shipped.read("recon4d", ASSET, SHA256, INSTEAD))) as arrays:
            for name, values in arrays.items():
                self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None])

    def features(self, image: Tensor) -> list[Tensor]:
        """What the five convolutions answer to pictures (B, 3, H, W) in [-1, 1], channels of length 1."""
        x = (image - self.get_buffer("mean")) / self.get_buffer("deviation")
        answers = []
        for k, (stride, padding) in enumerate(STEPS):
            if k in POOLED:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = self.get_buffer(f"weight{k}"), self.get_buffer(f"bias{k}")
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            answers.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return answers

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(len(a))
        for k, (one, other) in enumerate(zip(self.features(a), self.features(b))):
            squared = (one - other).square()
            total = total + torch.einsum("bchw,c->b", squared, self.get_buffer(f"channels{k}")) / squared[0, 0].numel()
        return total[:, None, None, None]
