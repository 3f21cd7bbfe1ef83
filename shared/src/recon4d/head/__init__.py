"""FLAME-format head models: `load()` gives the open head, `load(path)` a FLAME file."""

from recon4d.head.loader import load, read_landmark_embedding, read_uv
from recon4d.head.model import JOINTS, HeadModel
from recon4d.head.uv import with_uv

__all__ = ["JOINTS", "HeadModel", "load", "read_landmark_embedding", "read_uv", "with_uv"]
