"""Gaussian splatting: `rasterize` (CPU through Numba, CUDA through gsplat) and 3DGS PLY files."""

from recon4d.splat.harmonics import SH0
from recon4d.splat.ply import Gaussians, read_ply, write_ply
from recon4d.splat.rasterize import backends, rasterize

__all__ = ["SH0", "Gaussians", "backends", "rasterize", "read_ply", "write_ply"]
