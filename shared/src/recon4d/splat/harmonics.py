"""Spherical harmonics: view-dependent colour of degree 0 to 3."""

import torch
from torch import Tensor

SH0 = 0.28209479177387814  # the constant harmonic, 1 / (2 sqrt(pi)): colour = SH0 * coefficient + 0.5


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor, visible: Tensor) -> Tensor:
    """Colours (..., 3) of coefficients (..., K, 3) seen along `directions` (..., 3), which need not be unit.

    Real basis with the sign convention of 3DGS (Sloan 2013, "Efficient spherical harmonic evaluation").
    Entries where `visible` (...) is false are zero. Leading shapes broadcast.
    """
    # a culled Gaussian may hold NaN, whose gradient no mask afterwards would stop
    directions = torch.where(visible[..., None], directions, 1.0)
    bases = harmonic_basis(degree, torch.nn.functional.normalize(directions, dim=-1))
    values = torch.einsum("...k,...kc->...c", bases, coefficients.float()[..., : bases.shape[-1], :])
    return torch.where(visible[..., None], values, 0.0)


def harmonic_basis(degree: int, unit: Tensor) -> Tensor:
    """The (degree + 1)^2 real spherical harmonics at unit vectors (..., 3)."""
    x, y, z = unit.unbind(-1)
    bases = [torch.full_like(x, SH0)]
    if degree >= 1:
        bases += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        bases += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3.0 * zz - 1.0),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        bases += [
            -0.5900435899266435 * y * (3.0 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5.0 * zz - 1.0),
            0.3731763325901154 * z * (5.0 * zz - 3.0),
            -0.4570457994644658 * x * (5.0 * zz - 1.0),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3.0 * yy),
        ]
    return torch.stack(bases, dim=-1)
