"""Head-model parameters of a person: `flame_encoder.encoder` from a photo, `flame_encoder.tracker` from a video."""

from importlib.metadata import version

__version__ = version("flame-encoder")
