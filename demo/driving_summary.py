"""Gather the results of the driving demo's steps: `summary.json`, and the table at the end of the run."""

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
    overfit, scores, scene = result("overfit"), result("eval"), result("reconstruct")
    images = scores["interpolation"]
    flow = scores["flow"] or {}  # a scene without cuboids has none
    summary = {
        "seconds": seconds,
        "overfit_psnr": overfit["psnr"],
        "psnr": images["psnr"],
        "dynamic_psnr": images["dynamic_psnr"],
        "depth_rmse": images["depth_rmse"],
        "epe3d": flow.get("epe3d"),
        "angular_error_deg": flow.get("angular_error_deg"),
        "background_speed": flow.get("background_speed"),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    def shown(value: float | None, unit: str) -> str:
        return "not known" if value is None else f"{value:.2f} {unit}"

    rows = [(name, f"{s:.1f} s") for name, s in seconds.items()]
    rows += [
        ("total", f"{sum(seconds.values()):.1f} s"),
        ("overfit PSNR", shown(summary["overfit_psnr"], "dB on the last steps' frames")),
        ("PSNR", shown(summary["psnr"], "dB on the target frames")),
        ("dynamic PSNR", shown(summary["dynamic_psnr"], "dB on moving things")),
        ("depth RMSE", shown(summary["depth_rmse"], "m")),
        ("scene flow", shown(summary["epe3d"], "m mean error per frame")),
        ("direction", shown(summary["angular_error_deg"], "degrees median error of moving points")),
        ("background", shown(summary["background_speed"], "m/s mean speed")),
        ("Gaussians", str(scene["gaussians"])),
    ]
    for name, value in rows:
        print(f"{name:16}{value}")
    places = (
        ("summary", out / "summary.json"),
        ("alignment", Path(result("vis-lift")["picture"])),
        ("renders", out / "eval" / "renders"),
        ("scene", out / "scene" / "scene.ply"),
        ("video", out / "scene" / "render.mp4"),
    )
    for name, path in places:
        print(f"{name:16}{path}{'' if path.exists() else ' (missing)'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
