"""The few rotations that roma has not."""

import roma
from torch import Tensor


def to_6d(R: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 6): the first two rows (Zhou et al. 2019, as PyTorch3D and metrical-tracker have it)."""
    return R[..., :2, :].reshape(*R.shape[:-2], 6)


def from_6d(d6: Tensor) -> Tensor:
    """(..., 6) to (..., 3, 3): Gram-Schmidt of the two rows; roma's works on columns, hence the transposes."""
    rows = d6.reshape(*d6.shape[:-1], 2, 3)
    columns: Tensor = roma.special_gramschmidt(rows.transpose(-1, -2))
    return columns.transpose(-1, -2)
