"""Geometry and rendering shared by the recon4d tools: head models, mesh rendering, Gaussian splatting."""

import importlib
from importlib.metadata import version
from types import ModuleType

from recon4d.files import InputError

__version__ = version("recon4d")
__all__ = ["InputError", "__version__"]


def __getattr__(name: str) -> ModuleType:
    """Modules as attributes, imported when they are first asked for: `import recon4d; recon4d.head.load()`."""
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"recon4d.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"recon4d.{name}":
                raise
    raise AttributeError(f"module recon4d has no attribute {name}")
