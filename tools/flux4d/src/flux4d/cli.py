"""The command line: options in, one function per command, its result out."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from recon4d import InputError
from recon4d.cli import (
    Command,
    Group,
    claim_output,
    device_option,
    force_option,
    log,
    pick_device,
    print_result,
    seed_option,
)

index_option = click.option("--index-path", required=True, type=click.Path(path_type=Path), help="Of flux4d index.")
root_option = click.option("--data-root", help="Where the scenes are now.  [default: as in the index]")
clip_option = click.option("--clip-index", type=int, default=0, show_default=True, help="Number of a clip.")
camera_option = click.option("--camera", default="front_camera", show_default=True, help="Whose images.")
config_option = click.option(
    "--config", default="cpu-quick", show_default=True, help="A YAML file, or: paper, cpu-quick, cpu-scenes."
)
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting.")
checkpoint_option = click.option("--ckpt", required=True, type=click.Path(path_type=Path), help="Of overfit or train.")
depth_option = click.option("--depth-dir", help="Depth maps, SCENE/CAMERA/NN.npy or .png, for lift.points.")


def out_option(default: str) -> Callable:
    return click.option(
        "--out-dir", type=click.Path(path_type=Path), default=default, show_default=True, help="Output."
    )


def training_options(command: Callable) -> Callable:
    """What overfit and train share."""
    for option in (
        force_option,
        click.option("--seed", type=int, help="Seed of all random numbers.  [default: from the config]"),
        click.option(
            "--grad-accum-steps", type=click.IntRange(1), default=1, show_default=True, help="Batches per step."
        ),
        click.option("--resume-no-optim", is_flag=True, help="Leave the optimizer's state; parameters may differ."),
        click.option("--resume-from", type=click.Path(path_type=Path), help="A checkpoint to go on from."),
        click.option("--resume", is_flag=True, help="Go on from the output's ckpt_last.pt."),
        click.option("--no-projected-depth", is_flag=True, help="No loss on LiDAR depth."),
        click.option("--iters", type=click.IntRange(1), help="Steps.  [default: from the config]"),
        depth_option,
        click.option("--max-gaussians", type=click.IntRange(1), help="Most Gaussians.  [default: from the config]"),
        click.option(
            "--num-sky-points", type=click.IntRange(0), help="On the half sphere.  [default: from the config]"
        ),
        set_option,
        click.option(
            "--config",
            help="A YAML file, or: paper, cpu-quick, cpu-scenes.  [default: cpu-quick; with --resume the run's own]",
        ),
        root_option,
        index_option,
    ):
        command = option(command)
    return command


@click.group(cls=Group)
@click.version_option(package_name="flux4d")
def main() -> None:
    """Driving scenes as moving 3-D Gaussians, from cameras and LiDAR in one network pass."""


@main.command(cls=Command)
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--scenes", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--first", type=click.IntRange(1), default=1, show_default=True, help="Number of the first.")
@click.option("--frames", type=click.IntRange(2), default=80, show_default=True, help="Frames per scene, 10 Hz.")
@click.option("--width", type=click.IntRange(32, 3840), default=480, show_default=True, help="Of the images, 16:9.")
@click.option("--columns", type=click.IntRange(24), default=1800, show_default=True, help="LiDAR directions per turn.")
@click.option("--samples", type=click.IntRange(1, 8), default=2, show_default=True, help="Rays per pixel, squared.")
@seed_option
@force_option
def synth(
    root: Path, scenes: int, first: int, frames: int, width: int, columns: int, samples: int, seed: int, force: bool
) -> None:
    """Write driving scenes with known depth and motion into ROOT, in PandaSet's layout."""
    from flux4d import synth as synthesis

    folders = [root / f"{number:03d}" for number in range(first, first + scenes)]
    for folder in folders:
        claim_output(folder, force)
    written = []
    for number, folder in enumerate(folders, first):
        if folder.exists():
            shutil.rmtree(folder)
        written.append(synthesis.write_scene(folder, 1000 * seed + number, frames, width, columns, samples))
    print_result({"folder": str(root), "scenes": written})


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


@main.command(cls=Command)
@click.option("--data-root", required=True, type=click.Path(path_type=Path), help="The folder of scenes.")
@click.option("--out-full", required=True, type=click.Path(path_type=Path), help="Index of all scenes (JSON).")
@click.option("--out-tiny", type=click.Path(path_type=Path), help="Index of a few scenes.")
@click.option("--preset", type=click.Choice(["paper", "debug"]), help="How to cut.  [default: paper]")
@click.option("--clip-len-s", type=float, help="Seconds per clip; implies debug.  [default: 1.0]")
@click.option("--stride-s", type=float, help="Seconds from clip to clip; implies debug.  [default: 1.0]")
@click.option("--tiny-scenes", help="Scenes of the tiny index: 001,002.")
@click.option("--tiny-num-scenes", type=click.IntRange(1), default=2, show_default=True, help="Or the first so many.")
@click.option("--val-scenes", help="Scenes to test on: 010,020.  [default: the paper's]")
@click.option("--cameras", default="front_camera", show_default=True, help="Cameras, with commas.")
@force_option
def index(
    data_root: Path,
    out_full: Path,
    out_tiny: Path | None,
    preset: str | None,
    clip_len_s: float | None,
    stride_s: float | None,
    tiny_scenes: str | None,
    tiny_num_scenes: int,
    val_scenes: str | None,
    cameras: str,
    force: bool,
) -> None:
    """Cut scenes into clips. The paper's preset: 11 and 16 frames to train on, 16 to test on."""
    from flux4d import index as indices

    timed = clip_len_s is not None or stride_s is not None
    if preset == "paper" and timed:
        raise InputError("--preset paper has its own lengths; leave --clip-len-s and --stride-s away or use debug")
    debug = preset == "debug" or timed
    slicing = indices.debug_slicing(clip_len_s or 1.0, stride_s or 1.0) if debug else indices.PAPER
    for path in filter(None, (out_full, out_tiny)):
        claim_output(path, force)
    full = indices.build(data_root, slicing, _names(val_scenes), _names(cameras) or (), log)
    result = {"full": str(out_full), "clips": len(full["clips"])}
    tiny = indices.restrict(full, _names(tiny_scenes), tiny_num_scenes) if out_tiny else None
    indices.write(out_full, full)
    if out_tiny and tiny:
        indices.write(out_tiny, tiny)
        result |= {"tiny": str(out_tiny), "tiny_clips": len(tiny["clips"])}
    splits = {s: sum(c["split"] == s for c in full["clips"]) for s in ("train", "test")}
    print_result(result | splits | {"scenes": len({c["scene"] for c in full["clips"]})})


@main.command("vis-lift", cls=Command)
@index_option
@root_option
@clip_option
@click.option("--frame-index", type=int, default=0, show_default=True, help="Position in the clip.")
@camera_option
@out_option("out/lift_alignment")
def vis_lift(
    index_path: Path, data_root: str | None, clip_index: int, frame_index: int, camera: str, out_dir: Path
) -> None:
    """Draw the LiDAR points of a frame over its image, coloured by depth, to see whether they align."""
    from flux4d import clip as clips
    from flux4d import index as indices
    from flux4d import pictures

    found = indices.read(index_path)
    clip = clips.load(indices.choose(found, clip_index), clips.file_root(found, data_root), camera)
    print_result(pictures.write_alignment(clip, frame_index, out_dir))


@main.command("inspect-voxels", cls=Command)
@config_option
@index_option
@root_option
@clip_option
@camera_option
@click.option("--num-sky-points", type=click.IntRange(0), help="On the half sphere.  [default: from the config]")
@set_option
def inspect_voxels(
    config: str,
    index_path: Path,
    data_root: str | None,
    clip_index: int,
    camera: str,
    num_sky_points: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Lift a clip, sort its Gaussians into voxels, and print what came of it."""
    import torch

    from flux4d import clip as clips
    from flux4d import config as settings
    from flux4d import index as indices
    from flux4d import model, training

    chosen = settings.load(config, overrides, data__camera=camera, lift__sky_points=num_sky_points)
    found = indices.read(index_path)
    entry, root = indices.choose(found, clip_index), clips.file_root(found, data_root)
    sample = training.load_sample(entry, root, chosen, torch.device("cpu"))
    print_result({"clip": sample.clip.name, **model.describe(sample.given)})


def _run_training(
    choose: Callable[[dict], list[dict]],
    out: Path,
    fabric_options: dict,
    top: dict,
    fixed_frame: int | None = None,
    *,
    index_path: Path,
    data_root: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    num_sky_points: int | None,
    max_gaussians: int | None,
    depth_dir: str | None,
    iters: int | None,
    no_projected_depth: bool,
    resume: bool,
    resume_from: Path | None,
    resume_no_optim: bool,
    grad_accum_steps: int,
    seed: int | None,
    force: bool,
) -> None:
    """Train on the clips that `choose` takes from the index. top: settings of the command; the rest is as in
    `training_options`."""
    import lightning_fabric as lightning

    from flux4d import clip as clips
    from flux4d import config as settings
    from flux4d import index as indices
    from flux4d import training

    if resume and (resume_from or force):
        raise InputError("--resume goes on in the output; leave --resume-from and --force away")
    top = top | {
        "lift__sky_points": num_sky_points,
        "lift__max_gaussians": max_gaussians,
        "train__iterations": iters,
        "seed": seed,
    }
    if depth_dir and not any(override.startswith("lift.points=") for override in overrides):
        top["lift__points"] = "depth"
    if no_projected_depth:
        top |= {"losses__depth": 0.0, "losses__inverse_depth": 0.0}
    source = config or (out / "config.yaml" if resume else "cpu-quick")
    if resume:
        resume_from = out / training.LAST
        training.read_checkpoint(resume_from)
    chosen = settings.load(source, overrides, data__depth_dir=depth_dir, **top)
    found = indices.read(index_path)
    entries, root = choose(found), clips.file_root(found, data_root)
    if fixed_frame is not None and not all(0 <= fixed_frame < len(entry["frames"]) for entry in entries):
        raise InputError(
            f"--fixed-target-frame {fixed_frame}: the clip has frames 0 to {len(entries[0]['frames']) - 1}"
        )
    fabric = lightning.Fabric(**fabric_options)
    fabric.launch()
    if fabric.is_global_zero:
        if resume_from and not resume:
            training.read_checkpoint(resume_from)
        if not resume:
            claim_output(out, force)
            if force and out.exists():
                kept = resume_from is not None and out.resolve() in resume_from.resolve().parents
                if kept:
                    raise InputError(f"--force would delete {resume_from}; give another --output-dir or use --resume")
                shutil.rmtree(out)
        settings.write(out / "config.yaml", chosen)
    fabric.barrier()
    result = training.train(
        chosen, entries, root, out, fabric,
        resume_from=resume_from, with_optimizer=not resume_no_optim,
        accumulate=grad_accum_steps, fixed_frame=fixed_frame, log=log,
    )  # fmt: skip
    if fabric.is_global_zero:
        print_result(training.summary(result, out))


def _fabric_options(device: str, processes: int = 1) -> dict:
    import os

    chosen = pick_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if chosen.type == "cuda" and processes == 1 and world == 1:
        return {"accelerator": "cuda", "devices": [chosen.index or 0]}
    several = processes > 1 or world > 1
    # under torchrun, each process is one device of its node
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if world > 1 else processes
    return {
        "accelerator": chosen.type,
        "devices": devices,
        "num_nodes": max(world // devices, 1),
        "strategy": "ddp" if several else "auto",
    }


@main.command(cls=Command)
@clip_option
@camera_option
@training_options
@click.option("--fixed-target-frame", type=int, help="Compare with this frame only.  [default: random frames]")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), default="out/overfit", show_default=True, help="The run's folder."
)
@device_option
def overfit(
    clip_index: int, camera: str, fixed_target_frame: int | None, output_dir: Path, device: str, **shared: Any
) -> None:
    """Train on one clip, to see whether every part does its work."""
    from flux4d import index as indices

    top = {"data__camera": camera, "train__batch_size": 1}
    _run_training(
        lambda found: [indices.choose(found, clip_index)],
        output_dir,
        _fabric_options(device),
        top,
        fixed_target_frame,
        **shared,
    )


@main.command(cls=Command)
@training_options
@click.option(
    "--output-dir", type=click.Path(path_type=Path), default="out/train", show_default=True, help="The run's folder."
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="On this machine; or torchrun.")
@device_option
def train(index_path: Path, output_dir: Path, processes: int, device: str, **shared: Any) -> None:
    """Train on all clips of an index's train split."""

    def choose(found: dict) -> list[dict]:
        entries = [entry for entry in found["clips"] if entry["split"] == "train"]
        if not entries:
            raise InputError(f"--index-path {index_path} has no clips to train on; see --val-scenes of flux4d index")
        return entries

    _run_training(choose, output_dir, _fabric_options(device, processes), {}, index_path=index_path, **shared)


@main.command("eval", cls=Command)
@click.option("--config", help="Settings of data and lift.  [default: the checkpoint's]")
@index_option
@root_option
@checkpoint_option
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Which clips.")
@click.option("--clip-index", type=int, help="One clip by its number.  [default: all of the split]")
@out_option("out/eval")
@click.option("--save-renders", is_flag=True, help="Write truth, render, depth and motion of each target frame.")
@set_option
@device_option
@force_option
def eval_(
    config: str | None,
    index_path: Path,
    data_root: str | None,
    ckpt: Path,
    split: str,
    clip_index: int | None,
    out_dir: Path,
    save_renders: bool,
    overrides: tuple[str, ...],
    device: str,
    force: bool,
) -> None:
    """Measure a network: images, depth, scene flow; whole and moving things, interpolation and future. metrics.json."""
    import json

    from recon4d.files import write_text

    from flux4d import clip as clips
    from flux4d import evaluation, training
    from flux4d import index as indices

    claim_output(out_dir / "metrics.json", force)
    torch_device = pick_device(device)
    model, chosen = training.load_model(ckpt, torch_device, config, overrides)
    found = indices.read(index_path)
    entries = [entry for entry in found["clips"] if entry["split"] == split]
    if clip_index is not None:
        entries = [indices.choose(found, clip_index)]
    if not entries:
        raise InputError(f"--index-path {index_path} has no {split} clips; use --split or flux4d index --val-scenes")
    save = out_dir / "renders" if save_renders else None
    result = evaluation.evaluate(model, chosen, entries, clips.file_root(found, data_root), torch_device, save)
    write_text(out_dir / "metrics.json", json.dumps(result, indent=2) + "\n")
    print_result({key: value for key, value in result.items() if key != "clips"} | {"folder": str(out_dir)})


@main.command("vis-flow", cls=Command)
@click.option("--config", help="Settings of data and lift.  [default: the checkpoint's]")
@index_option
@root_option
@clip_option
@click.option("--camera", help="Whose images.  [default: the checkpoint's]")
@checkpoint_option
@out_option("out/flow")
@click.option(
    "--mode",
    type=click.Choice(["fixed", "follow", "both"]),
    default="both",
    show_default=True,
    help="The camera stands at --frame-ref, or moves along.",
)
@click.option("--render-frames", default="0-15", show_default=True, help="Frames of the clip: 0-15 or 0,3,5.")
@click.option("--frame-ref", type=int, default=0, show_default=True, help="Where the fixed camera stands.")
@set_option
@device_option
@force_option
def vis_flow(
    config: str | None,
    index_path: Path,
    data_root: str | None,
    clip_index: int,
    camera: str | None,
    ckpt: Path,
    out_dir: Path,
    mode: str,
    render_frames: str,
    frame_ref: int,
    overrides: tuple[str, ...],
    device: str,
    force: bool,
) -> None:
    """Draw the image-plane motion of a clip: hue is direction, brightness speed, up to 10 pixels per frame."""
    from flux4d import clip as clips
    from flux4d import index as indices
    from flux4d import pictures, training

    claim_output(out_dir, force)
    torch_device = pick_device(device)
    model, chosen = training.load_model(ckpt, torch_device, config, overrides, camera)
    found = indices.read(index_path)
    entry, root = indices.choose(found, clip_index), clips.file_root(found, data_root)
    frames = pictures.frame_list(render_frames, len(entry["frames"]))
    modes = ("fixed", "follow") if mode == "both" else (mode,)
    print_result(pictures.write_flow(model, chosen, entry, root, torch_device, out_dir, modes, frames, frame_ref))


@main.command(cls=Command)
@index_option
@root_option
@clip_option
@checkpoint_option
@out_option("out/scene")
@click.option("--fps", type=click.FloatRange(1, 120), default=30.0, show_default=True, help="Of the video.")
@click.option(
    "--slow", type=click.FloatRange(0.1, 20), default=4.0, show_default=True, help="Video seconds per second."
)
@set_option
@device_option
@force_option
def reconstruct(
    index_path: Path,
    data_root: str | None,
    clip_index: int,
    ckpt: Path,
    out_dir: Path,
    fps: float,
    slow: float,
    overrides: tuple[str, ...],
    device: str,
    force: bool,
) -> None:
    """A clip as Gaussians with velocities (scene.ply, cameras.json) and a video along its path (render.mp4)."""
    import time

    import torch

    from flux4d import clip as clips
    from flux4d import index as indices
    from flux4d import pictures, scene, training

    claim_output(out_dir, force)
    torch_device = pick_device(device)
    model, chosen = training.load_model(ckpt, torch_device, None, overrides)
    found = indices.read(index_path)
    entry, root = indices.choose(found, clip_index), clips.file_root(found, data_root)
    sample = training.load_sample(entry, root, chosen, torch_device)
    started = time.perf_counter()
    with torch.no_grad():
        gaussians = training.reconstruct(model, sample, chosen)
        seconds = time.perf_counter() - started
        placed = scene.to_world(gaussians, sample.clip.ego_to_world)
        path = scene.camera_path(sample.clip)
        scene.write(out_dir, placed, path)
        frames = pictures.write_video(out_dir / "render.mp4", placed, path, fps, slow)
    print_result(
        {
            "clip": sample.clip.name,
            "gaussians": len(placed),
            "seconds": seconds,
            "frames": frames,
            "folder": str(out_dir),
        }
    )


@main.command(cls=Command)
@click.argument("scene_dir", type=click.Path(path_type=Path))
@click.option("--remove", type=int, multiple=True, metavar="ACTOR", help="Take an actor away.")
@click.option("--move", nargs=4, type=float, multiple=True, metavar="ACTOR DX DY DZ", help="Shift one, metres.")
@click.option("--add", nargs=4, type=float, multiple=True, metavar="ACTOR DX DY DZ", help="Add a shifted copy.")
@click.option(
    "--min-speed", type=click.FloatRange(0), default=0.5, show_default=True, help="m/s; what is slower stands."
)
@click.option("--distance", type=float, default=1.0, show_default=True, help="Metres between a cluster's neighbours.")
@out_option("out/edited")
@click.option("--fps", type=click.FloatRange(1, 120), default=30.0, show_default=True, help="Of the video.")
@click.option(
    "--slow", type=click.FloatRange(0.1, 20), default=4.0, show_default=True, help="Video seconds per second."
)
@force_option
def edit(
    scene_dir: Path,
    remove: tuple[int, ...],
    move: tuple[tuple[float, ...], ...],
    add: tuple[tuple[float, ...], ...],
    min_speed: float,
    distance: float,
    out_dir: Path,
    fps: float,
    slow: float,
    force: bool,
) -> None:
    """List the moving actors of SCENE_DIR (a folder of reconstruct); with an option, change them and render."""
    import torch

    from flux4d import actors, pictures, scene

    if distance <= 0:
        raise InputError(f"--distance {distance} must be positive")
    gaussians, path = scene.read(scene_dir)
    changes = bool(remove or move or add)
    if changes:
        claim_output(out_dir, force)
    middle = float(path.times[[0, -1]].mean())
    with torch.no_grad():
        labels = actors.find(gaussians, middle, min_speed, distance)
        result = {"actors": [asdict(actor) for actor in actors.describe(gaussians, labels, middle)]}
        if changes:
            for number, *offset in move:
                gaussians = actors.move(gaussians, labels, int(number), tuple(offset))
            for number, *offset in add:
                gaussians, labels = actors.add(gaussians, labels, int(number), tuple(offset))
            for number in remove:
                gaussians, labels = actors.remove(gaussians, labels, number)
            scene.write(out_dir, gaussians, path)
            result["frames"] = pictures.write_video(out_dir / "render.mp4", gaussians, path, fps, slow)
            result |= {"gaussians": len(gaussians), "folder": str(out_dir)}
    print_result(result)


@main.command(cls=Command)
@click.argument("scene_dir", type=click.Path(path_type=Path))
@click.option("--host", default="localhost", show_default=True, help="Where to listen; 0.0.0.0 for other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any free one.")
def view(scene_dir: Path, host: str, port: int) -> None:
    """Show SCENE_DIR (a folder of reconstruct or edit) in the browser: a slider for time, a free camera."""
    from flux4d import viewer

    viewer.serve(scene_dir, host, port, lambda page: print_result({"page": page}), log)
