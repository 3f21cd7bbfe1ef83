"""Gaussian splatting: `rasterize` (CPU through Numba, CUDA through gsplat) and 3DGS PLY files."""

from recon4d.splat.rasterize import backends, rasterize

__all__ = ["backends", "rasterize"]
