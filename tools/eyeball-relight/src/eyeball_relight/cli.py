"""The command line: options in, one function per command, its result out."""

import shutil
from dataclasses import asdict
from pathlib import Path

import click
from recon4d import InputError
from recon4d.cli import Command, Group, claim_output, force_option, log, pick_device, print_result, seed_option

FOLDER = click.Path(path_type=Path)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu; there is no other yet.")
config_option = click.option("--config-path", type=FOLDER, required=True, help="The capture's config.yaml.")
chunk_option = click.option(
    "--chunk-size", type=click.IntRange(1), default=16384, show_default=True, help="Points evaluated at once."
)


def only_cpu(name: str) -> None:
    """Refuse devices that the hash grid's kernels do not run on."""
    if pick_device("cpu" if name in ("auto", "0") else name).type != "cpu":
        raise InputError(f"--device {name}: training and export run on the CPU only; use cpu")


@click.group(cls=Group)
@click.version_option(package_name="eyeball-relight")
def main() -> None:
    """A relightable face with eyeballs from a phone sequence with the flash on."""


@main.command(cls=Command)
@click.argument("folder", type=FOLDER)
@click.option("--frames", type=click.IntRange(4), default=40, show_default=True, help="Views.")
@click.option("--size", type=click.IntRange(32, 2048), default=256, show_default=True, help="Pixels per side.")
@click.option(
    "--light-offset",
    type=float,
    nargs=3,
    default=(0.0, 0.0, 0.0),
    show_default=True,
    help="Where the flash is in the camera's axes, metres.",
)
@click.option("--head-model", type=click.Path(), help="Another head with regions.  [default: the open head]")
@seed_option
@force_option
def synth(
    folder: Path,
    frames: int,
    size: int,
    light_offset: tuple[float, float, float],
    head_model: str | None,
    seed: int,
    force: bool,
) -> None:
    """Render a flash capture of the head model into FOLDER, with its truth in FOLDER/truth."""
    from recon4d import head as heads

    from eyeball_relight import synth as synthesis

    out = claim_output(folder, force)
    head = heads.with_uv(heads.load(head_model))
    if force and out.is_dir():
        shutil.rmtree(out)
    print_result(synthesis.synthesise(out, head, frames, size, seed, light_offset))


@main.command("import", cls=Command)
@click.argument("source", type=FOLDER)
@click.option("--images", type=FOLDER, required=True, help="Folder of the pictures.")
@click.option("--masks", type=FOLDER, help="Folder of the masks of the head, white is the head.")
@click.option("--out", type=FOLDER, required=True, help="Where the capture goes.")
@click.option(
    "--cube",
    type=click.FloatRange(0.1, 2),
    default=1.0,
    show_default=True,
    help="Side of the head's cube as a share of the picture's shorter side.",
)
@force_option
def import_(source: Path, images: Path, masks: Path | None, out: Path, cube: float, force: bool) -> None:
    """Bring SOURCE, Metashape's XML, a COLMAP model's folder or nerfstudio's transforms.json, into our layout."""
    from eyeball_relight import photogrammetry

    print_result(photogrammetry.import_capture(source, images, masks, claim_output(out, force), cube))


@main.command(cls=Command)
@config_option
@click.option(
    "--preset",
    type=click.Choice(["cpu-quick", "cpu-first", "full"]),
    default="cpu-quick",
    show_default=True,
    help="Settings.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting of the config.")
@click.option("--workspace", type=FOLDER, help="Where the run goes.  [default: workspace/<capture>]")
@click.option("--mode", type=click.Choice(["train", "export_eyeball"]), default="train", help="As CoRA's trainer.")
@click.option("--ckpt-path", type=FOLDER, help="For --mode export_eyeball.")
@click.option("--save-visual-dir", type=FOLDER, help="For --mode export_eyeball.")
@chunk_option
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@device_option
@force_option
@click.pass_context
def train(
    context: click.Context,
    config_path: Path,
    preset: str,
    overrides: tuple[str, ...],
    workspace: Path | None,
    mode: str,
    ckpt_path: Path | None,
    save_visual_dir: Path | None,
    chunk_size: int,
    resume: bool,
    device: str,
    force: bool,
) -> None:
    """Train on a capture: geometry, eyeballs, material and light; write latest.pth and config.yaml."""
    from eyeball_relight import capture as captures
    from eyeball_relight import config as settings
    from eyeball_relight import training

    if mode == "export_eyeball":
        if ckpt_path is None or save_visual_dir is None:
            raise InputError("--mode export_eyeball needs --ckpt-path and --save-visual-dir")
        context.invoke(
            export,
            config_path=config_path,
            ckpt_path=ckpt_path,
            save_visual_dir=save_visual_dir,
            chunk_size=chunk_size,
            device=device,
            force=force,
        )
        return
    only_cpu(device)
    if resume and force:
        raise InputError("--resume goes on with what --force would delete; give one")
    chosen = settings.load(config_path, preset, overrides)
    root = Path(chosen.data.root)
    suffix = config_path.stem.removeprefix("config")  # config_wo-hybrid.yaml has a folder of its own
    out = workspace or Path("workspace") / (root.resolve().name + suffix)
    if resume:
        if not (out / training.CHECKPOINT).is_file():
            raise InputError(f"{out} holds no run to resume; leave --resume away")
        if overrides:
            raise InputError("--resume goes on with the run's own settings; leave --set away")
        chosen = settings.load(out / "config.yaml")
        root = Path(chosen.data.root)
    else:
        claim_output(out, force)
    capture = captures.read(root, log)
    if not resume:
        if force and out.is_dir():
            shutil.rmtree(out)
        settings.write(out / "config.yaml", chosen)
    result = training.train(chosen, capture, out, log, resume)
    if result.light_warning:
        log(f"warning: {result.light_warning}")
    print_result(asdict(result) | {"folder": str(out)})


@main.command(cls=Command)
@config_option
@click.option("--ckpt-path", type=FOLDER, required=True, help="A run's latest.pth.")
@click.option("--save-visual-dir", type=FOLDER, required=True, help="Where the asset goes.")
@click.option("--uv-size", type=click.IntRange(64, 8192), default=1024, show_default=True, help="Texels per side.")
@click.option("--faces", type=click.IntRange(100), default=40000, show_default=True, help="At most so many triangles.")
@chunk_option
@device_option
@force_option
def export(
    config_path: Path,
    ckpt_path: Path,
    save_visual_dir: Path,
    chunk_size: int,
    device: str,
    force: bool,
    uv_size: int = 1024,
    faces: int = 40000,
) -> None:
    """Write a trained run as meshes, maps, eyeballs, asset.glb and preview.html."""
    from eyeball_relight import capture as captures
    from eyeball_relight import config as settings
    from eyeball_relight import export as exports
    from eyeball_relight import training

    only_cpu(device)
    out = claim_output(save_visual_dir, force)
    root = Path(settings.load(config_path).data.root)
    field, intensity, step = training.open_field(ckpt_path)
    capture = captures.read(root, log)
    if len(field.occlusion) != len(capture):
        raise InputError(f"{ckpt_path} was trained on {len(field.occlusion)} views and {root} has {len(capture)}")
    print_result(exports.export(field, step, intensity, capture, out, uv_size, faces, chunk_size, log))


@main.command(cls=Command)
@click.option("--data-root", type=FOLDER, required=True, help="The capture.")
@click.option("--mesh-uv-path", type=FOLDER, required=True, help="mesh_uv.obj of the first step's export.")
@click.option("--left", type=FOLDER, help="Painted map.  [default: diffuse_leye_mask.png in the capture]")
@click.option("--right", type=FOLDER, help="Painted map.  [default: diffuse_reye_mask.png in the capture]")
@click.option("--snap", is_flag=True, help="Move the masks' outlines to where the pictures change colour.")
@force_option
def render_eye_mask(
    data_root: Path, mesh_uv_path: Path, left: Path | None, right: Path | None, snap: bool, force: bool
) -> None:
    """Render the eyes painted white on the diffuse map into every view: leye_mask/ and reye_mask/."""
    from eyeball_relight import eyes

    for folder in ("leye_mask", "reye_mask"):
        claim_output(data_root / folder, force)
    maps = {
        "left": left or data_root / "diffuse_leye_mask.png",
        "right": right or data_root / "diffuse_reye_mask.png",
    }
    print_result(eyes.write_masks(data_root, mesh_uv_path, maps, snap))


@main.command(cls=Command)
@click.option("--data-root", type=FOLDER, required=True, help="The capture.")
@click.option("--asset", type=FOLDER, required=True, help="The first step's export.")
@click.option("--left", type=FOLDER, help="Diffuse map with green marks on the left eye.")
@click.option("--right", type=FOLDER, help="Diffuse map with green marks on the right eye.")
@click.option("--landmarks", type=FOLDER, help="Folder of 68 landmarks per picture, instead of marks.")
@click.option("--write", type=FOLDER, help="A config.yaml that takes the landmarks.")
@force_option
def eyeball_landmarks(
    data_root: Path,
    asset: Path,
    left: Path | None,
    right: Path | None,
    landmarks: Path | None,
    write: Path | None,
    force: bool,
) -> None:
    """Points on the eyeballs: under green marks on the diffuse map, or from landmarks in the pictures.

    With --landmarks the eyes are also painted, into diffuse_leye_mask.png and diffuse_reye_mask.png of the capture.
    """
    from eyeball_relight import capture as captures
    from eyeball_relight import config as settings
    from eyeball_relight import eyes, images

    marks = (left, right)
    if (landmarks is None) == (left is None and right is None) or (landmarks is None and None in marks):
        raise InputError("give --left and --right, maps with green marks, or --landmarks, a folder")
    if write is not None:
        settings.load(write)
    coord, mask = eyes.read_maps(asset)
    if landmarks is None:
        points = {side: eyes.green_marks(path, coord, mask) for side, path in zip(eyes.SIDES, marks)}
        result: dict = {}
    else:
        painted = {side: data_root / f"diffuse_{side[0]}eye_mask.png" for side in eyes.SIDES}
        for path in painted.values():
            claim_output(path, force)
        outlines, result = eyes.outlines(captures.read(data_root, log), landmarks)
        points = {}
        for side in eyes.SIDES:
            picture, points[side] = eyes.from_outline(outlines[side], coord, mask)
            images.write(painted[side], picture)
    found = {f"{side}_eye_ldm": points[side].tolist() for side in eyes.SIDES}
    if write is not None:
        settings.add_landmarks(write, found)
    print_result(found | result)


@main.command(cls=Command)
@click.argument("asset", type=FOLDER)
@click.option("--data-root", type=FOLDER, required=True, help="The capture that the asset was trained on.")
def metrics(asset: Path, data_root: Path) -> None:
    """Measure an exported ASSET on the held-out views, and against the truth of a synthetic capture."""
    from eyeball_relight import capture as captures
    from eyeball_relight import evaluation
    from eyeball_relight import export as exports

    found, lights = exports.read(asset)
    print_result(evaluation.measure(found, lights, captures.read(data_root, log), asset))


@main.command(cls=Command)
@click.argument("asset", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--mode",
    type=click.Choice(["light", "environment", "turntable"]),
    default="light",
    show_default=True,
    help="What moves: a point light, an environment, or camera and flash.",
)
@click.option("--environment", type=FOLDER, help="An equirectangular picture, .hdr or 8-bit.")
@click.option("--frames", type=click.IntRange(1), default=60, show_default=True, help="Pictures.")
@click.option("--fps", type=click.FloatRange(1, 240), default=25.0, show_default=True, help="Of a video.")
@click.option("--size", type=click.IntRange(16, 4096), default=512, show_default=True, help="Longer side in pixels.")
@force_option
def relight(
    asset: Path, out: Path, mode: str, environment: Path | None, frames: int, fps: float, size: int, force: bool
) -> None:
    """Render an exported ASSET under another light into OUT: a video if it ends in .mp4, else a folder of pictures."""
    from recon4d import video
    from recon4d.cli import progress

    from eyeball_relight import export as exports
    from eyeball_relight import images
    from eyeball_relight import relight as relighting

    if (mode == "environment") != (environment is not None):
        raise InputError("--environment PICTURE goes with --mode environment, and only with it")
    claim_output(out, force)
    found, lights = exports.read(asset)
    scale = size / max(lights.front.width, lights.front.height)
    camera = lights.front.resized(*(2 * round(side * scale / 2) for side in (lights.front.width, lights.front.height)))
    if mode == "light":
        pictures = relighting.moving_light(found, lights, camera, frames)
    elif mode == "turntable":
        pictures = relighting.turntable(found, lights, camera, frames)
    else:
        light = relighting.read_environment(environment)
        pictures = relighting.turning_environment(found, camera, light, frames)
    pictures = progress(pictures, "rendering", frames)
    if out.suffix.lower() == ".mp4":
        video.write_mp4(out, ((picture * 255 + 0.5).byte().numpy() for picture in pictures), fps)
    else:
        for i, picture in enumerate(pictures):
            images.write(out / f"{i:04d}.png", picture.numpy())
    print_result({"frames": frames, "width": camera.width, "height": camera.height, "out": str(out)})


if __name__ == "__main__":
    main()
