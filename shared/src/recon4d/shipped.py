"""Networks that ship with a package: their files, checked, and the runtime of TFLite ones."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from importlib import resources
from typing import Any

from recon4d.files import InputError


def read(package: str, name: str, sha256: str, instead: str) -> bytes:
    """The bytes of a file in the folder `assets` of a package.

    Args:
        instead: what the user can do without it, for the errors.

    Raises:
        InputError: it is missing, or another file than the one that belongs there.
    """
    try:
        data = resources.files(package).joinpath("assets", name).read_bytes()
    except OSError as error:
        raise InputError(f"{name} is missing from {package}/assets; put it there, or use {instead}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{package}/assets/{name} is another file than the one that belongs there; install again")
    return data


def tflite(content: bytes, instead: str, threads: int = 1) -> Any:
    """A TFLite network, ready to be invoked. Raises InputError where its runtime does not load on this machine."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except Exception as error:  # not installed, or its library does not load
        raise InputError(
            f"this needs ai-edge-litert, which does not load here ({error}); install it, or use {instead}"
        ) from error
    with _unsaid():
        network = Interpreter(model_content=content, num_threads=threads)
        network.allocate_tensors()
    return network


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """The runtime writes a line about itself to the process's stderr, whatever Python's is: not while this lasts."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
