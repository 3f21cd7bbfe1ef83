"""Photos and videos of faces into frames, boxes, landmarks, crops and head mattes."""

from importlib.metadata import version

__version__ = version("prep-faces")
