"""Each training command, killed (-9) at random moments of its whole run and started again, beside an undisturbed run.

    python bench/kills.py [--kills 10] [--only flux4d] [--seed 0]

Half of the moments are uniform over the seconds that the undisturbed run took, start-up included, the others over the
seconds after it wrote its first file. Every second run goes on with --resume, the others with the same command again;
where that refuses, because a checkpoint is there, --resume follows. A row ends with the largest difference of a number
of the result, relative to the largest of its array. What a stream shows is gone with the process that showed it, so
train-online is only asked to go on and to end.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from recon4d.formats import ply

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared" / "tests"))
import forks  # commands that start in a fraction of a second


@dataclass
class Training:
    """`words` with {out} for the run's folder; `result` is the file that it leaves there, `read` its numbers."""

    words: str
    result: str
    read: Callable[[Path], Mapping[str, np.ndarray]]
    same: bool = True


def of_torch(path: Path) -> dict[str, np.ndarray]:
    found, flat = torch.load(path, weights_only=True), {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, torch.Tensor):
            flat[name] = value.double().numpy()
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}")

    for part in ("model", "weights", "field"):
        walk(found.get(part), part)
    return flat


def of_script(path: Path) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in torch.jit.load(path).state_dict().items()}


def of_ply(path: Path) -> dict[str, np.ndarray]:
    table = ply.read(path)["vertex"].data
    return {name: table[name].astype(np.float64) for name in table.dtype.names}


def settings(pairs: str) -> str:
    return " ".join(f"--set {pair}" for pair in pairs.split())


AVATAR = settings(
    "model.tex_size=32 model.basis=4 model.hidden=16 train.batch_size=5 train.blend_start=50 train.preview_seconds=0 "
    "train.checkpoint_every=100"
)
FLUX = settings(
    "lift.max_gaussians=800 lift.sky_points=4000 model.channels=[4,6] model.hidden=8 train.frames=1 "
    "train.checkpoint_every=10"
)
FACE = settings(
    "model.levels=5 model.finest=64 model.hidden=24 model.log2_entries=11 model.level_grow_iter=30 "
    "train.iterations=500 train.mesh_render_iter=380 train.samples=512 train.grid=32 train.milestones=[60] "
    "train.mesh_resolution=48 train.warm_up=5 train.checkpoint_every=20 eyes.still=20"
)

PREPARED = (
    "gaussian-avatar synth data --subject me --frames 14 --size 64",
    "eyeball-relight synth face --frames 11 --size 64",
    "flux4d synth scenes --scenes 2 --frames 6 --width 96 --columns 300 --samples 1",
    "flux4d index --data-root scenes --out-full clips.json --clip-len-s 0.5 --stride-s 0.5 --val-scenes 002",
    "feat-extract synth people --train-people 3 --test-people 2 --clips 5 --frames 6 --size 96",
    "prep-faces crop --config people/exp.yaml",
    "feat-extract feat2d --config people/exp.yaml --backbone timm:resnet10t --weights none",
)
TRAININGS = {
    "flame-encoder train": Training(
        "flame-encoder train --config encoder.yaml --cache cache --out {out}", "eidolon_encoder_final.pth", of_torch
    ),
    "gaussian-avatar train-offline": Training(
        f"gaussian-avatar train-offline --data-dir data --subject me --output-dir {{out}} --work-name w "
        f"--preset cpu-quick {AVATAR} --set train.iterations=3000",
        "me/w/model.ply",
        of_ply,
    ),
    "gaussian-avatar train-online": Training(
        f"gaussian-avatar train-online --data-dir data --subject me --output-dir {{out}} --work-name w "
        f"--preset cpu-online --images-per-frame 200 {AVATAR}",
        "me/w/model.ply",
        of_ply,
        same=False,
    ),
    "eyeball-relight train": Training(
        f"eyeball-relight train --config-path face/config.yaml --workspace {{out}} {FACE}", "latest.pth", of_torch
    ),
    "flux4d overfit": Training(
        f"flux4d overfit --index-path clips.json --iters 120 --output-dir {{out}} {FLUX}", "ckpt_last.pt", of_torch
    ),
    "flux4d train": Training(
        f"flux4d train --index-path clips.json --iters 120 --output-dir {{out}} {FLUX}", "ckpt_last.pt", of_torch
    ),
    "feat-extract train": Training("feat-extract train --config people/exp.yaml", "best_scripted.pt", of_script),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", default="", help="commands whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads differ in the last bits
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        prepare()
        print("| command | seconds | killed | with a checkpoint | refused without --resume | largest difference |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for command, training in TRAININGS.items():
            if options.only in command:
                print(row(command, training, [moments.random() for _ in range(options.kills)]), flush=True)


def prepare() -> None:
    for line in PREPARED:
        finished(line.split())
    Path("encoder.yaml").write_text(
        yaml.safe_dump(
            {
                "view": {"fov": 14.0, "size": 64},
                "encoder": {"backbone": "mobilenet_v3_small", "weights": "none", "freeze": "backbone"},
                "data": {"synthetic": 32, "validation": 2},
                "train": {"batch_size": 4, "checkpoint_every": 5, "validate_every": 100},
                "stages": [{"name": "One", "epochs": 20, "learning_rate": 0.01, "loss_weights": {"landmark": 10.0}}],
            }
        )
    )


def finished(words: list[str]) -> str:
    """Run a command to its end; what it said on stderr."""
    done = forks.run(*words)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    return done.stderr


def row(command: str, training: Training, moments: list[float]) -> str:
    finished(at(training, "warm")[0])  # what is made once is made
    words, whole = at(training, "whole")
    start = time.monotonic()
    process = forks.start(*words)
    began = first_file(process, whole) - start
    if process.wait():
        sys.exit(f"{' '.join(words)} failed")
    seconds = time.monotonic() - start
    expected = training.read(whole / training.result)
    killed = checkpoints = refusals = 0
    difference = 0.0
    for number, moment in enumerate(moments):
        words, out = at(training, f"{number}")
        process = forks.start(*words)
        if number < len(moments) / 2:
            time.sleep(moment * seconds)
        else:
            first_file(process, out)
            time.sleep(moment * (seconds - began))
        killed += process.poll() is None
        process.kill()
        if process.wait() == 0:
            continue
        if number % 2:
            again = forks.run(*words)
            refused = again.returncode == 2 and "--resume" in again.stderr
            if again.returncode and not refused:
                sys.exit(f"{' '.join(words)}\n{again.stderr}")
            refusals += refused
        if number % 2 == 0 or refused:
            checkpoints += "begins anew" not in finished([*words, "--resume"])
        found = training.read(out / training.result)
        if found.keys() != expected.keys():
            sys.exit(f"{command}, killed at moment {number}, ended with another result")
        if training.same:
            difference = max(difference, *(apart(found[key], expected[key]) for key in expected))
        left = [path for path in out.rglob("*") if ".recon4d-" in path.name]
        if left:
            sys.exit(f"{command}, killed at moment {number}, left {left}")
    shown = f"{difference:.1e}" if training.same else "-"
    return f"| `{command}` | {seconds:.1f} | {killed} | {checkpoints} | {refusals} | {shown} |"


def first_file(process: forks.Process, out: Path) -> float:
    """Wait until a run has written a file, or has ended; when that was."""
    while process.poll() is None and not any(path.is_file() for path in out.rglob("*")):
        time.sleep(0.01)
    return time.monotonic()


def at(training: Training, name: str) -> tuple[list[str], Path]:
    """The command line and the folder of one run."""
    out = Path(f"runs-{name}") / training.words.split()[0]
    if "{out}" in training.words:
        shutil.rmtree(out, ignore_errors=True)
        return training.words.format(out=out).split(), out
    # feat-extract writes where its config says
    config = yaml.safe_load(Path("people/exp.yaml").read_text())
    config["checkpoint"] = f"../{out}/best_scripted.pt"
    config["model"]["streams"] = ["feat2d"]
    config["train"] = {"epochs": 200}
    path = Path(f"people/{name}.yaml")
    path.write_text(yaml.safe_dump(config))
    return training.words.replace("people/exp.yaml", str(path)).split(), out


def apart(one: np.ndarray, other: np.ndarray) -> float:
    largest = float(np.abs(other).max(initial=0.0))
    return float(np.abs(one - other).max(initial=0.0)) / (largest or 1.0)


if __name__ == "__main__":
    main()
