"""Gather the results of the demo's steps: `summary.json`, and the table at the end of the run."""

import json
import sys
from pathlib import Path


def main(out: Path) -> None:
    def result(step: str) -> dict:
        return json.loads((out / f"{step}.json").read_text())

    seconds = {}
    for line in (out / "steps.txt").read_text().splitlines():
        name, end, start = line.split()
        seconds[name] = round(float(end) - float(start), 1)
    track, metrics, train = result("track"), result("metrics"), result("train")
    summary = {
        "seconds": seconds,
        "track": {key: round(track[key], 3) for key in ("mean_px", "p95_px", "mean_iod")},
        "metrics": {key: metrics[key] for key in ("psnr", "ssim", "lpips")},
        "gaussians": train["gaussians"],
        "images_per_second": train["images_per_second"],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    rows = [(f"{name}", f"{s:.1f} s") for name, s in seconds.items()]
    rows += [
        ("total", f"{sum(seconds.values()):.1f} s"),
        (
            "track error",
            "{mean_px:.2f} px mean, {p95_px:.2f} px 95 %, {mean_iod:.2f} % of eye distance".format(**track),
        ),
        ("held-out PSNR", f"{metrics['psnr']:.2f} dB inside the mask"),
        ("held-out SSIM", f"{metrics['ssim']:.4f}"),
        ("held-out LPIPS", "too small" if metrics["lpips"] is None else f"{metrics['lpips']:.4f}"),
        ("Gaussians", f"{train['gaussians']}"),
        ("training", f"{train['images_per_second']:.1f} images per second"),
    ]
    for name, value in rows:
        print(f"{name:16}{value}")
    avatar = out / "avatar" / "head" / "demo"
    places = (
        ("summary", out / "summary.json"),
        ("track overlay", out / "data" / "head" / "overlay.mp4"),
        ("avatar", avatar / "model.ply"),
        ("contact sheet", avatar / "contact.png"),
        ("video", avatar / "render.mp4"),
    )
    for name, path in places:
        print(f"{name:16}{path}{'' if path.exists() else ' (missing)'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
