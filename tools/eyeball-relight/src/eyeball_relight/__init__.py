"""A relightable face with eyeballs from a co-located flash capture."""

from importlib.metadata import version

__version__ = version("eyeball-relight")
