"""Gather the results of relightable_face.sh or phone_flash.sh: `summary.json`, and the table at the end of the run."""

import json
import sys
from pathlib import Path

MEASURES = {
    "psnr": "held-out PSNR in the mask, dB",
    "full_psnr": "held-out PSNR, dB",
    "relit_psnr": "PSNR under other lights, dB",
    "eye_centre_mm": "eye centre, mm",
    "eye_radius_mm": "eye radius, mm",
    "normal_deg": "median normal on skin, degrees",
    "albedo_error": "albedo on skin, linear",
    "chamfer_mm": "Chamfer distance, mm",
}
OF_VIDEOS = {  # what only phone_flash.sh measures
    "pose_degrees": "poses, median turn, degrees",
    "pose_mm": "poses, median across, mm",
    "size_ratio": "size, beside the true one",
    "focal_ratio": "focal length, beside the true one",
}


def main(out: Path) -> None:
    seconds = {}
    for line in (out / "steps.txt").read_text().splitlines():
        name, end, start = line.split()
        seconds[name] = round(float(end) - float(start), 1)
    metrics = json.loads((out / "metrics.json").read_text())
    summary = {"seconds": seconds} | {key: metrics.get(key) for key in MEASURES}
    summary |= {key: metrics[key] for key in OF_VIDEOS if key in metrics}
    imported = out / ("reimport.json" if (out / "reimport.json").is_file() else "import.json")
    warning = json.loads(imported.read_text()).get("light_warning") if imported.is_file() else None
    if warning:
        summary["warning"] = warning
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    rows = [(name, f"{s:.1f} s") for name, s in seconds.items()] + [("total", f"{sum(seconds.values()):.1f} s")]
    rows += [(text, f"{metrics[key]:.3f}") for key, text in (MEASURES | OF_VIDEOS).items() if key in metrics]
    rows += [
        (name, f"{path}{'' if path.exists() else ' (missing)'}")
        for name, path in (
            ("summary", out / "summary.json"),
            ("glTF", out / "asset" / "asset.glb"),
            ("preview", out / "asset" / "preview.html"),
            ("contact sheet", out / "asset" / "contact.png"),
            ("video", out / "relit.mp4"),
        )
    ]
    for name, value in rows:
        print(f"{name:34}{value}")
    if warning:
        print(f"warning: {warning}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
