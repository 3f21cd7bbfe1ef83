"""An animatable Gaussian head avatar from a tracked portrait video."""

from importlib.metadata import version

__version__ = version("gaussian-avatar")
