"""Driving scenes as moving 3-D Gaussians (Flux4D)."""

from importlib.metadata import version

__version__ = version("flux4d")
