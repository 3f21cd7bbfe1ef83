"""Gaussian splatting: `rasterize` (CPU through Numba, CUDA through gsplat), and files of Gaussians."""

from recon4d.splat.gaussians import Gaussians
from recon4d.splat.harmonics import SH0
from recon4d.splat.ply import read_ply, write_ply
from recon4d.splat.rasterize import backends, rasterize

__all__ = ["SH0", "Gaussians", "backends", "rasterize", "read_ply", "write_ply"]
