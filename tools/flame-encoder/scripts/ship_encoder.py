"""Make the encoder that ships from a finished run: half precision, with a note of where it comes from.

flame-encoder train --config points --out outputs
python tools/flame-encoder/scripts/ship_encoder.py outputs/eidolon_encoder_final.pth
"""

import sys
from pathlib import Path

from flame_encoder.encoder import trained

NOTE = "Synthetic people alone; backbone from torchvision's MobileNetV2, ImageNet. See shipped.md."


def main() -> None:
    state = trained.read(Path(sys.argv[1]))
    trained.save(trained.SHIPPED, trained.halved(state) | {"note": NOTE})
    print(f"{trained.SHIPPED}: {trained.SHIPPED.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
