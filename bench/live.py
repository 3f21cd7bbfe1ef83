"""The live pipe on a video that stands in for a camera: what each stage does, its memory, and what the avatar is worth.

    python bench/live.py VIDEO                      60 seconds; prints figures as JSON
    python bench/live.py VIDEO --seconds 300        memory every 20 seconds, what is left of the ring
    python bench/live.py VIDEO --keep FOLDER        keeps all frames and lines; PSNR of the avatar on the last ones
    python bench/live.py --offline FOLDER           trains offline on those frames; its PSNR on the same last ones
    python bench/live.py VIDEO --kill 5             kills each stage at random moments, five times each
    python bench/live.py VIDEO --sheet FILE.png     also a picture: camera, matte, avatar
    python bench/live.py VIDEO --drift              the tracker alone, every frame of the video again and again for
                                                    --seconds of it: how far each showing is from the last one

PSNR is of the head's mask, over the last 100 frames that the stream gave out, with each avatar in their poses.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np

BIN = Path(sys.executable).parent
STAGES = ("camera", "track", "train")
LAST = 100  # frames that are measured


def resident(process: int) -> float:
    """MiB; 0 for a process that has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


class Pipe:
    """The three commands, started as a shell does."""

    def __init__(self, video: Path, seconds: float, out: Path, ring: Path, keep: bool, preset: str, more: list[str]):
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        self.said = {name: tempfile.TemporaryFile("w+") for name in STAGES}  # noqa: SIM115
        camera = [BIN / "prep-faces", "camera", video, "--realtime", "--loop", "--fps", 25, "--seconds", seconds]
        camera += ["--ring", ring]
        camera += ["--keep", 10**6, "--leave"] if keep else []
        self.camera = self._start(camera, "camera", stdout=subprocess.PIPE, env=one)
        track = [BIN / "flame-encoder", "track", "--stream", "-"]
        self.track = self._start(track, "track", stdin=self.camera.stdout, stdout=subprocess.PIPE, env=one)
        lines = self.track.stdout
        if keep:
            tee = subprocess.Popen(["tee", str(ring.parent / "track.jsonl")], stdin=lines, stdout=subprocess.PIPE)
            lines.close()
            lines = tee.stdout
        train = [
            BIN / "gaussian-avatar",
            "train-online",
            "--stream",
            "-",
            "--preset",
            preset,
            "--output-dir",
            out,
            *more,
        ]
        train += ["--subject", "head", "--work-name", "live"]
        self.train = self._start(train, "train", stdin=lines, stdout=subprocess.PIPE)
        for stream in (self.camera.stdout, self.track.stdout, lines):
            stream.close()
        self.processes = {"camera": self.camera, "track": self.track, "train": self.train}

    def _start(self, words: list, name: str, **options: object) -> subprocess.Popen:
        return subprocess.Popen([str(word) for word in words], stderr=self.said[name], text=True, **options)

    def words(self, name: str) -> str:
        """What a stage has said last."""
        self.said[name].seek(0)
        return (self.said[name].read().strip().splitlines() or [""])[-1]


def measured(pipe: Pipe, every: float) -> dict:
    """Memory while it runs, and what it reports at the end."""
    begin, memory = time.monotonic(), []
    while pipe.train.poll() is None:
        if time.monotonic() - begin >= every * (len(memory) + 1):
            memory.append({name: round(resident(process.pid)) for name, process in pipe.processes.items()})
        time.sleep(0.1)
    text = pipe.train.stdout.read()
    codes = {name: process.wait() for name, process in pipe.processes.items()}
    said = {name: pipe.words(name) for name in STAGES}
    return {"result": json.loads(text) if text.strip() else None, "mib": memory, "codes": codes, "said": said}


def killed(name: str, video: Path, place: Path, moments: tuple[float, float]) -> dict:
    """What the others do when a stage is killed at a random moment."""
    out, ring = place / "out", place / "ring"
    pipe = Pipe(video, 60, out, ring, False, "cpu-online", [])
    moment = random.uniform(*moments)
    time.sleep(moment)
    pipe.processes[name].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    for other in pipe.processes.values():
        try:
            other.wait(30)
        except subprocess.TimeoutExpired:
            other.kill()
    saved = (out / "head/live/model.ply").is_file() and (out / "head/live/track.npz").is_file()
    found = {
        "killed": name,
        "after": round(moment, 1),
        "others_ended_in": round(time.monotonic() - begin, 1),
        "codes": {key: process.returncode for key, process in pipe.processes.items()},
        "said": {key: pipe.words(key) for key in STAGES if key != name},
        "avatar_saved": saved,
        "ring_left": ring.exists(),
    }
    shutil.rmtree(place, ignore_errors=True)
    return found


def drift(video: Path, seconds: float) -> list[dict]:
    """Of each showing of the video against the last one: the head's rotation (degrees) and the face (mm)."""
    import roma
    import torch
    from recon4d.formats import track_stream
    from recon4d.formats.track import join
    from recon4d.head import load

    frames = sum(packet.pts is not None for packet in av.open(str(video)).demux(video=0))
    pipes: dict = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
    }
    camera = [str(word) for word in (BIN / "prep-faces", "camera", video, "--loop", "--seconds", seconds)]
    first = subprocess.Popen(camera, **pipes)
    second = subprocess.Popen([BIN / "flame-encoder", "track", "--stream", "-"], stdin=first.stdout, text=True, **pipes)
    showings: dict[int, dict] = {}
    for line in track_stream.read_all(second.stdout, "the tracker's lines"):
        if line.track is not None and line.track.valid[0]:
            number = int(Path(str(line.track.names[0])).stem)
            showings.setdefault(number // frames, {})[number % frames] = line.track
    head = load()
    face = torch.nonzero(head.regions["face"])[:, 0]
    whole = [k for k in sorted(showings) if len(showings[k]) > 0.8 * frames]
    last, rows = showings[whole[-1]], []
    for k in whole:
        both = [i for i in showings[k] if i in last]
        one, other = (join([showing[i] for i in both]) for showing in (showings[k], last))
        a, b = (track.vertices(head)[:, face] for track in (one, other))
        R, t = roma.rigid_points_registration(a, b)
        angle = torch.rad2deg(roma.rotmat_geodesic_distance(torch.from_numpy(one.R), torch.from_numpy(other.R)))
        row = {
            "seconds": (k + 0.5) * frames / float(one.fps),
            "rotation_degrees": float(angle.median()),
            "rotation_degrees_p95": float(angle.quantile(0.95)),
            "face_mm": float((a @ R.mT + t[:, None] - b).norm(dim=-1).mean() * 1000),
        }
        rows.append({name: round(value, 3) for name, value in row.items()})
    return rows


def capture_of(folder: Path) -> None:
    """The kept frames as a capture for offline training: `data/head` with images and track."""
    from recon4d.formats import track_stream
    from recon4d.formats.track import join

    with open(folder / "track.jsonl") as file:
        lines = list(track_stream.read_all(file, "lines"))
    tracks = [line.track for line in lines if line.track is not None and line.track.valid[0]]
    data = folder / "data/head"
    (data / "images").mkdir(parents=True, exist_ok=True)
    kept = []
    for track in tracks:
        stem = Path(str(track.names[0])).stem
        picture = cv2.imread(str(folder / f"ring/images/{stem}.jpg"))
        matte = cv2.imread(str(folder / f"ring/mattes/{stem}.png"), cv2.IMREAD_GRAYSCALE)
        if picture is not None and matte is not None and matte.any():
            cv2.imwrite(str(data / f"images/{stem}.png"), np.dstack([picture, matte]))
            kept.append(replace(track, names=np.array([f"{stem}.png"])))
    replace(join(kept), shape=kept[-1].shape).write(data / "track.npz")


def settled(folder: Path, after: float = 20) -> dict:
    """Frames per second and share of dropped frames of the first two stages from some seconds after the start on."""
    with open(folder / "track.jsonl") as file:
        frames = [line for line in map(json.loads, file) if "stages" in line]
    frames = [frame for frame in frames if frame["time"] >= frames[0]["time"] + after]
    found = {}
    for name in ("camera", "track"):
        first, last = frames[0]["stages"][name], frames[-1]["stages"][name]
        done, dropped = last["frames"] - first["frames"], last["dropped"] - first["dropped"]
        seconds = frames[-1]["time"] - frames[0]["time"]
        found[name] = {"fps": round(done / seconds, 1), "dropped_share": round(dropped / max(done + dropped, 1), 3)}
    return found


def quality(run: Path, folder: Path, sheet: Path | None = None) -> float:
    """PSNR inside the mask of a run's avatar on the last frames of the stream."""
    import torch
    from gaussian_avatar import avatars, motions, runs
    from recon4d.formats.track import read

    opened = runs.open_run(run, torch.device("cpu"))
    track = read(folder / "data/head/track.npz")
    track = track.take(slice(max(0, len(track) - LAST), len(track)))
    motion = motions.from_track(track, opened.head, shape=opened.track.shape, origin=opened.track.t[0])
    errors, rows = [], []
    for i in range(len(track)):
        image = cv2.imread(str(folder / f"data/head/images/{track.names[i]}"), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]]
        K = torch.from_numpy(track.K if track.Ks is None else track.Ks[i])
        camera = replace(opened.motion.camera, K=K, width=image.shape[1], height=image.shape[0])
        splats, _ = avatars.deform(
            opened.avatar, opened.head, motion.vertices[i : i + 1], motion.inputs[i : i + 1], camera.world_to_camera,
            True, opened.config.model.one_sided,
        )  # fmt: skip
        with torch.no_grad():
            found, _ = avatars.rasterize(splats, camera)
        drawn, mask = found[0].clamp(0, 1).numpy(), image[..., 3:] / 255
        truth = image[..., :3] / 255 * mask
        errors.append(float(((drawn - truth) ** 2 * (mask > 0.5)).sum() / (3 * (mask > 0.5).sum())))
        if i % (LAST // 4) == 0:
            rows.append(np.hstack([image[..., :3] / 255, truth, drawn]))
    if sheet is not None:
        cv2.imwrite(str(sheet), (255 * np.vstack(rows)[..., ::-1]).astype(np.uint8))
    return float(-10 * np.log10(np.mean(errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="seconds between two looks at the memory")
    parser.add_argument("--keep", type=Path, help="keep all frames and lines here")
    parser.add_argument("--offline", type=Path, help="train offline on what was kept there")
    parser.add_argument("--images", type=int, default=4000, help="of offline training")
    parser.add_argument("--kill", type=int, default=0, help="times that each stage is killed")
    parser.add_argument("--moments", type=float, nargs=2, default=(1, 30), help="seconds after the start, from and to")
    parser.add_argument("--only", choices=STAGES, help="the one that is killed")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--drift", action="store_true", help="of the tracker alone")
    parser.add_argument("--preset", default="cpu-online")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    more = [word for text in options.overrides for word in ("--set", text)]
    if options.offline is not None:
        folder = options.offline
        words = ["train-offline", "--data-dir", folder / "data", "--output-dir", folder / "out", "--subject", "head"]
        words += [
            "--work-name",
            "offline",
            "--preset",
            "cpu-quick",
            "--set",
            "data.crop=false",
            "--split",
            "all",
            "--force",
        ]
        words += ["--set", f"train.iterations={options.images}"]
        subprocess.run([str(word) for word in [BIN / "gaussian-avatar", *words]], check=True, stdout=subprocess.DEVNULL)
        print(json.dumps({"offline_psnr": round(quality(folder / "out/head/offline", folder, options.sheet), 2)}))
        return
    if options.drift:
        print(json.dumps(drift(options.video, options.seconds), indent=2))
        return
    if options.kill:
        for name in STAGES if options.only is None else (options.only,):
            for _ in range(options.kill):
                print(json.dumps(killed(name, options.video, Path(tempfile.mkdtemp()), options.moments)), flush=True)
        return
    place = options.keep or Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    pipe = Pipe(options.video, options.seconds, place / "out", place / "ring", bool(options.keep), options.preset, more)
    found = measured(pipe, options.every)
    found["ring_left"] = (place / "ring").exists()
    print(json.dumps(found, indent=2), flush=True)
    if options.keep is not None and found["result"] is not None:
        found = {}
        capture_of(place)
        found["after_20_s"] = settled(place)
        found["psnr"] = round(quality(place / "out/head/live", place, options.sheet), 2)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
