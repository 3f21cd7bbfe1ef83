"""Neural mattes: a TorchScript network in place of GrabCut."""

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recon4d import InputError
from recon4d.files import sha256

from prep_faces.affine import warp
from prep_faces.grabcut import Cut, reduced_frame, seeds, tidy
from prep_faces.headshape import HeadShape

MULTIPLE = 32  # networks halve their input up to five times


def check_trust(path: str | Path, trust_code: bool, digest: str | None) -> None:
    """Raise InputError unless the user says that the code in a TorchScript file may run: any, or that of a hash."""
    if not Path(path).is_file():
        raise InputError(f"--model {path} does not exist or is not a file")
    found = sha256(path)
    if digest is not None and digest.lower() != found:
        raise InputError(f"--sha256: {path} has the hash {found}, not the one given; it was not loaded")
    if digest is None and not trust_code:
        raise InputError(
            f"--model {path} is a program that can do anything; if you trust who made it, add --trust-code "
            f"or --sha256 {found}"
        )


@cache
def load_model(path: str) -> Any:
    """A TorchScript network from (1, 3, H, W) RGB in [0, 1] to alpha. Raises InputError when it is not one."""
    try:
        with open(path, "rb") as file:
            model = torch.jit.load(file, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--model {path} is not a TorchScript file ({reason}); export one with torch.jit.save"
        ) from error
    run_model(model, np.zeros((64, 64, 3), np.uint8), path)
    return model


def run_model(model: Any, image: np.ndarray, path: str) -> np.ndarray:
    """Alpha (H, W) float32 in [0, 1] of (H, W, 3) uint8 RGB, padded to a multiple of 32 and cut back.

    A network that answers with several tensors gives the first that has one channel. Raises InputError when there
    is none of the right size, or the network fails.
    """
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 0, -height % MULTIPLE, 0, -width % MULTIPLE, cv2.BORDER_REPLICATE)
    pixels = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    try:
        with torch.inference_mode():
            answer = model(pixels)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:120]
        raise InputError(f"--model {path} fails on an image ({reason}); it must take (1, 3, H, W) in [0, 1]") from error
    tensors = answer if isinstance(answer, (tuple, list)) else [answer]
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.numel() == padded.shape[0] * padded.shape[1]:
            alpha = tensor.reshape(padded.shape[:2])[:height, :width].float().nan_to_num().clamp(0, 1)
            return alpha.numpy()
    raise InputError(f"--model {path} gives no alpha of the image's size; it must answer (1, 1, H, W)")


def cut_with_model(image: np.ndarray, shape: HeadShape, path: str) -> Cut:
    """The network's matte of the region that can be head: one connected part, cut off below the neck.

    The network sees the head and its surroundings at about twice the resolution of GrabCut.
    """
    to_small, height, width = reduced_frame(shape, image.shape[0], image.shape[1], detail=2.0)
    alpha = run_model(load_model(path), warp(image, to_small, height, width), path)
    labels, _, _ = seeds(shape, to_small, height, width)
    alpha = np.where(labels == cv2.GC_BGD, 0, alpha)
    kept = tidy((alpha > 0.5).astype(np.uint8), labels == cv2.GC_FGD)
    brush = np.ones((3, 3), np.uint8)
    near = cv2.dilate(kept, brush, iterations=4) > 0
    filled = (kept > 0) & (alpha <= 0.5)  # holes
    return Cut(np.where(filled, 1, np.where(near, alpha, 0)).astype(np.float32), to_small)
