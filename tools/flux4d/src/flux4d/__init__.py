"""Driving scenes as moving 3-D Gaussians (Flux4D)."""
