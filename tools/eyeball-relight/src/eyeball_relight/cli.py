"""The command line: options in, one function per command, its result out."""

from dataclasses import asdict
from pathlib import Path

import click
from recon4d import InputError
from recon4d.cli import Command, Group, Real, device_option, force_option, log, print_result, seed_option

from eyeball_relight.config import PRESETS

FOLDER = click.Path(path_type=Path)
POSES = ("track", "skin", "colmap", "auto")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
cpu_option = click.option("--device", default="cpu", show_default=True, help="cpu, the only one.")
config_option = click.option("--config-path", type=FOLDER, required=True, help="The capture's config.yaml.")
chunk_option = click.option(
    "--chunk-size", type=click.IntRange(1, 10**7), default=16384, show_default=True, help="Points evaluated at once."
)


@click.group(cls=Group)
@click.version_option(package_name="eyeball-relight")
def main() -> None:
    """A relightable face with eyeballs from a phone sequence with the flash on."""


@main.command(cls=Command)
@click.argument("folder", type=FOLDER)
@click.option("--frames", type=click.IntRange(4, 10**5), help="Views.  [default: 40, or 300 of a video]")
@click.option("--size", type=click.IntRange(32, 2048), default=256, show_default=True, help="Pixels per side.")
@click.option("--video", is_flag=True, help="A hand-held phone's video.mp4, with noise, blur, blinks and room light.")
@click.option(
    "--light-offset",
    type=Real(-100, 100),
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
    frames: int | None,
    size: int,
    video: bool,
    light_offset: tuple[float, float, float],
    head_model: str | None,
    seed: int,
    force: bool,
) -> None:
    """Render a flash capture of the head model into FOLDER, with its truth in FOLDER/truth."""
    settings = (size, light_offset, head_model, seed, force)
    if video:
        from eyeball_relight.filming import film

        print_result(film(folder, frames or 300, *settings))
    else:
        from eyeball_relight.synth import synthesise

        print_result(synthesise(folder, frames or 40, *settings))


@main.command("import", cls=Command)
@click.argument("source", type=FOLDER)
@click.argument("capture", type=FOLDER, required=False)
@click.option("--images", type=FOLDER, help="Folder of the pictures.  [default: images in a tracked SOURCE]")
@click.option("--masks", type=FOLDER, help="Folder of the masks, white or opaque is the head.  [default: alpha]")
@click.option("--out", type=FOLDER, help="Where the capture goes, instead of CAPTURE.")
@click.option(
    "--cube",
    type=Real(0.1, 2),
    default=1.0,
    show_default=True,
    help="Side of the head's cube as a share of the picture's shorter side.",
)
@click.option("--poses", type=click.Choice(POSES), help="Of a tracked SOURCE.  [default: auto]")
@click.option("--landmarks", type=FOLDER, help="Landmarks per frame, which outline the eyes.")
@click.option(
    "--frames", type=click.IntRange(6, 10**4), default=40, show_default=True, help="Views taken of a tracked SOURCE."
)
@click.option("--size", type=click.IntRange(32, 2048), help="Pixels per side.  [default: the head's own, 256 at most]")
@click.option("--head-model", type=click.Path(), help="Head model of the track.  [default: the open head]")
@force_option
def import_(
    source: Path,
    capture: Path | None,
    images: Path | None,
    masks: Path | None,
    out: Path | None,
    cube: float,
    poses: str | None,
    landmarks: Path | None,
    frames: int,
    size: int | None,
    head_model: str | None,
    force: bool,
) -> None:
    """Bring SOURCE into our layout: Metashape's XML, a COLMAP model's folder, a transforms.json, or a tracked video.

    A tracked video is a folder with track.npz and images/ with alpha, of flame-encoder track and prep-faces matte.
    """
    place = out or capture
    if place is None or (out is not None and capture is not None):
        raise InputError("say once where the capture goes, as CAPTURE or with --out")
    if source.suffix.lower() in VIDEOS and source.is_file():
        raise InputError(
            f"{source} is a video, whose head has to be followed first: prep-faces frames, prep-faces landmarks, "
            "flame-encoder track, prep-faces matte; demo/phone_flash.sh does all of it"
        )
    if poses is not None or (source / "track.npz").is_file():
        from eyeball_relight.tracked import import_track

        settings = (frames, size, head_model, poses or "auto")
        print_result(import_track(source, place, images, landmarks, *settings, force, log))
        return
    from eyeball_relight.photogrammetry import import_capture

    if images is None:
        raise InputError(f"{source} goes with --images, the folder of its pictures")
    print_result(import_capture(source, images, masks, place, cube, force, log))


@main.command(cls=Command)
@config_option
@click.option("--preset", type=click.Choice(PRESETS), help="Settings.  [default: cpu-quick]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a setting of the config.")
@click.option("--workspace", type=FOLDER, help="Where the run goes.  [default: workspace/<capture>]")
@click.option("--mode", type=click.Choice(["train", "export_eyeball"]), default="train", help="As CoRA's trainer.")
@click.option("--ckpt-path", type=FOLDER, help="For --mode export_eyeball.")
@click.option("--save-visual-dir", type=FOLDER, help="For --mode export_eyeball.")
@chunk_option
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@device_option
@force_option
def train(
    config_path: Path,
    preset: str | None,
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
    from eyeball_relight import exports, training

    if mode == "train":
        result = training.start(config_path, preset, overrides, workspace, resume, force, device, log)
        print_result(asdict(result))
    elif ckpt_path is None or save_visual_dir is None:
        raise InputError("--mode export_eyeball needs --ckpt-path and --save-visual-dir")
    else:
        where = (config_path, ckpt_path, save_visual_dir)
        print_result(exports.export(*where, chunk_size=chunk_size, device=device, force=force, log=log))


@main.command(cls=Command)
@config_option
@click.option("--ckpt-path", type=FOLDER, required=True, help="A run's latest.pth.")
@click.option("--save-visual-dir", type=FOLDER, required=True, help="Where the asset goes.")
@click.option("--uv-size", type=click.IntRange(64, 8192), default=1024, show_default=True, help="Texels per side.")
@click.option(
    "--faces", type=click.IntRange(100, 10**8), default=40000, show_default=True, help="At most so many triangles."
)
@click.option("--usdz", is_flag=True, help="Write asset.usdz as well, which phones open.")
@chunk_option
@cpu_option
@force_option
def export(
    config_path: Path,
    ckpt_path: Path,
    save_visual_dir: Path,
    uv_size: int,
    faces: int,
    usdz: bool,
    chunk_size: int,
    device: str,
    force: bool,
) -> None:
    """Write a trained run as meshes, maps, eyeballs, asset.glb and preview.html."""
    from eyeball_relight import exports

    where = (config_path, ckpt_path, save_visual_dir)
    print_result(exports.export(*where, uv_size, faces, chunk_size, device, force, log, usdz))


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
    from eyeball_relight.eyes import write_masks

    print_result(write_masks(data_root, mesh_uv_path, left, right, snap, force))


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
    from eyeball_relight.eyes import find_landmarks

    print_result(find_landmarks(data_root, asset, left, right, landmarks, write, force, log))


@main.command(cls=Command)
@click.argument("asset", type=FOLDER)
@click.option("--data-root", type=FOLDER, required=True, help="The capture that the asset was trained on.")
@click.option("--align", is_flag=True, help="Find pose and exposure of each held-out view first.")
@click.option("--truth", type=FOLDER, help="Folder of synth --video whose video the capture is of.")
@force_option
def metrics(asset: Path, data_root: Path, align: bool, truth: Path | None, force: bool) -> None:
    """Measure an exported ASSET on the held-out views, and against the truth of a synthetic capture."""
    from eyeball_relight.evaluation import evaluate

    print_result(evaluate(asset, data_root, force, log, align, truth))


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
@click.option("--frames", type=click.IntRange(1, 10**5), default=60, show_default=True, help="Pictures.")
@click.option("--fps", type=Real(1, 240), default=25.0, show_default=True, help="Of a video.")
@click.option("--size", type=click.IntRange(16, 4096), default=512, show_default=True, help="Longer side in pixels.")
@force_option
def relight(
    asset: Path, out: Path, mode: str, environment: Path | None, frames: int, fps: float, size: int, force: bool
) -> None:
    """Render an exported ASSET under another light into OUT: a video if it ends in .mp4, else a folder of pictures."""
    from eyeball_relight.relight import write_relit

    print_result(write_relit(asset, out, mode, environment, frames, fps, size, force))


if __name__ == "__main__":
    main()
