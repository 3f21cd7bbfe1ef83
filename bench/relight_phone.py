"""Synthetic phone videos of several people, each from video to relightable face by demo/phone_flash.sh.

    python bench/relight_phone.py OUT            the people of docs/benchmarks-relight.md, each in a folder of OUT
    python bench/relight_phone.py OUT 4 8        these people (seeds); folders that hold a result are not run again

Settings are the demo's, or what the environment says (SYNTH_OPTIONS without --seed, TRAIN_OPTIONS, ...).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from eyeball_relight.filming import person_tone

DEMO = Path(__file__).parent.parent / "demo" / "phone_flash.sh"
PEOPLE = (4, 8, 10)
SIZE = "--frames 150 --size 384"
ROWS = {
    "psnr": "held-out PSNR in the mask, dB",
    "relit_psnr": "PSNR under three other lights, dB",
    "normal_deg": "median normal error on skin, degrees",
    "albedo_error": "albedo error on skin, up to a factor",
    "eye_centre_mm": "eyeball centre, the worse one, mm",
    "eye_radius_mm": "eyeball radius, mm",
    "pose_degrees": "poses, degrees",
    "pose_mm": "poses, mm",
    "focal_ratio": "focal length, beside the true one",
    "chamfer_mm": "Chamfer distance, mm",
}


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out, people = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or list(PEOPLE)
    found = []
    for seed in people:
        place = out / str(seed)
        if not (place / "summary.json").is_file():
            synth = f"{os.environ.get('SYNTH_OPTIONS', SIZE)} --seed {seed}"
            options = {"FRAMES_OPTIONS": "--sharpest 2"} | os.environ | {"OUT": str(place), "SYNTH_OPTIONS": synth}
            subprocess.run(["bash", str(DEMO)], env=options, check=True)
        found.append(json.loads((place / "summary.json").read_text()))
    print("| person (skin's tone) | " + " | ".join(f"{seed} ({person_tone(seed):.2f})" for seed in people) + " |")
    print("| --- |" + " ---: |" * len(people))
    for key, text in ROWS.items():
        print(f"| {text} | " + " | ".join(f"{one[key]:.3g}" for one in found) + " |")
    print("| seconds of all steps | " + " | ".join(f"{sum(one['seconds'].values()):.0f}" for one in found) + " |")


if __name__ == "__main__":
    main()
