"""Geometry and rendering shared by the recon4d tools: head models, mesh rendering, Gaussian splatting."""

from recon4d.files import InputError

__all__ = ["InputError"]
