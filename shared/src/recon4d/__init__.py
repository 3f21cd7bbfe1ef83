"""Geometry and rendering shared by the recon4d tools: head models, mesh rendering, Gaussian splatting."""

import os

# Before torch loads OpenMP. Its threads spin for milliseconds after each operation, on the very cores that the
# renderers' own threads are about to need; with this they sleep after some microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from recon4d.files import InputError

__all__ = ["InputError"]
