"""2-D and 3-D features of face sequences, and a model that names their emotions."""

from importlib.metadata import version

__version__ = version("feat-extract")
