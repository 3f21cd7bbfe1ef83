"""Avatars for other programs: a static 3DGS file of one expression, and a compact file of the whole avatar."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import roma
import torch
from recon4d import InputError, metrics, splat
from recon4d.cli import progress
from recon4d.runs import claim
from recon4d.splat import Gaussians, scene_files

from gaussian_avatar import avatars, driving, evaluation, model_file, motions
from gaussian_avatar.driving import Transfer
from gaussian_avatar.motions import Motion, frontal_frame
from gaussian_avatar.runs import Run

VISIBLE = 1 / 255  # opacity below which a Gaussian is never drawn
FIDELITY_FRAMES = 12


def check_options(
    kind: str, frames: str, track: str | Path | None, expressions: Sequence[str], jaw: float | None
) -> None:
    """Raise InputError for options that a format leaves no room for."""
    if kind in scene_files.KINDS:
        return
    if expressions or jaw is not None or frames != "frontal":
        raise InputError(f"--expression, --jaw and --frames are of static files; leave them away with --format {kind}")
    if track and kind != "html":
        raise InputError(f"--format {kind} holds the avatar and no other clip; leave --track away")


def export_frames(
    run: Run,
    frames: str = "frontal",
    track: str | Path | None = None,
    expressions: Sequence[str] = (),
    jaw: float | None = None,
    force: bool = False,
    kind: str = "ply",
    transfer: Transfer = "absolute",
    log: Callable[[str], None] = lambda _: None,
    track_head_model: str | Path | None = None,
) -> dict[str, int | str]:
    """Write `export/00000.ply ...` into the run's folder, static Gaussians for any 3DGS viewer; what was written.

    Args:
        frames: `frontal`, the one that looks most straight at the camera, or `all`.
        track: what to take all frames of, as `driving.track_of` reads it.
        expressions, jaw: a face of one's own instead; see `posed`.
        force: replace an earlier export.
        kind: of the files: one of `recon4d.splat.scene_files.KINDS`.
        transfer, log, track_head_model: see `driving.track_of`.

    Raises:
        InputError: options that do not fit each other, an occupied folder, an unreadable track.
    """
    if (expressions or jaw is not None) and (track or frames == "all"):
        raise InputError("--expression and --jaw make one face; leave --frames and --track away")
    if track or frames == "all":
        motion, _ = driving.motion_of(run, track, transfer, log, track_head_model)
    else:
        motion = posed(run, expressions, jaw)
    out, total = run.folder / "export", len(motion)
    with claim(run.folder, "gaussian-avatar export", force=force, inputs=[track], names=("export",)):
        paths = list(progress(write_statics(run, motion, range(total), out, kind), "writing", total))
    return {"files": len(paths), "first": str(paths[0]), "bytes": sum(path.stat().st_size for path in paths)}


def export_compact(run: Run, bits: int = 8, force: bool = False) -> dict[str, float | int | str]:
    """Write the whole avatar as `model.safetensors` into the run's folder; see `write_compact`.

    Raises InputError for a file that exists, unless `force` replaces it.
    """
    name = "model.safetensors"
    with claim(run.folder, "gaussian-avatar export compact", force=force, names=(name,)):
        return write_compact(run, run.folder / name, bits)


def static(run: Run, motion: Motion, frame: int) -> Gaussians:
    """The Gaussians of one frame in the head's world (y up, z towards the camera), without those that nobody sees."""
    device = run.avatar.means.device
    motion = motions.within(motion, run.motion)
    with torch.no_grad():
        splats, _ = avatars.deform(
            run.avatar,
            run.head.to(device),
            motion.vertices[frame : frame + 1].to(device),
            motion.inputs[frame : frame + 1].to(device),
            motion.camera.world_to_camera.to(device),
        )
    seen = (splats.opacities[0] > VISIBLE).cpu()
    means, quats, scales, opacities, colors = (
        getattr(splats, name)[0].cpu()[seen] for name in ("means", "quats", "scales", "opacities", "colors")
    )
    return Gaussians(means, quats, scales, opacities, ((colors - 0.5) / splat.SH0)[:, None])


def posed(run: Run, expressions: Sequence[str], jaw: float | None) -> Motion:
    """One frame: the clip's most frontal one, with `name=value` expressions in place of its own, and an open jaw.

    Args:
        expressions: names of the head model's expressions, or their numbers where it has no names. Where any is
            given, the others are 0. jaw: degrees.

    Raises:
        InputError: an unknown expression, a value that is no number.
    """
    one = run.track.take([frontal_frame(run.track)])
    if expressions:
        one = replace(one, expression=_coefficients(run, expressions)[None])
        if driving.closes_eyelids(run):  # the avatar knows no other blink
            columns = [run.head.expression_names.index(name) for name in driving.BLINKS]
            one.eyelids[:], one.expression[:, columns] = one.expression[:, columns], 0
    if jaw is not None:
        turn = roma.rotvec_to_rotmat(torch.tensor([[np.radians(jaw), 0.0, 0.0]]))
        one = replace(one, jaw=turn.float().numpy())
    return motions.from_track(one, run.head, origin=run.track.t[0])


def _coefficients(run: Run, expressions: Sequence[str]) -> np.ndarray:
    n = run.track.expression.shape[1]
    names = [*run.head.expression_names, *map(str, range(len(run.head.expression_names), n))][:n]
    values = np.zeros(n, np.float32)
    for given in expressions:
        name, _, text = given.partition("=")
        if name not in names:
            known = ", ".join(names) if len(names) < 12 else f"{', '.join(names[:12])} ... ({len(names)})"
            raise InputError(f"--expression {name} is not one of the head model's: {known}")
        try:
            values[names.index(name)] = float(text)
        except ValueError:
            values[names.index(name)] = np.nan
        if not abs(values[names.index(name)]) < 1e3:
            raise InputError(f"--expression {given} must be name=number, for example {name}=0.5")
    return values


def write_statics(run: Run, motion: Motion, frames: Iterable[int], folder: Path, kind: str = "ply") -> Iterator[Path]:
    """Write `00000.ply ...`, or of another kind, one for each chosen frame; yields each path when it is written."""
    for frame in frames:
        path = folder / f"{frame:05d}.{kind}"
        scene_files.write(path, static(run, motion, frame))
        yield path


def write_compact(run: Run, path: Path, bits: int) -> dict[str, float | int | str]:
    """Write the compact file; its size, and how near its renders are to the avatar's own (PSNR over the image)."""
    model_file.write_compact(path, run.avatar, run.head.name, bits)
    device = run.avatar.means.device
    small = model_file.read_compact(path, run.head, run.motion.inputs.shape[1]).to(device)
    frames = np.unique(np.linspace(0, len(run.track) - 1, FIDELITY_FRAMES).round().astype(int))
    a, b = (
        evaluation.render_frames(which, frames, torch.zeros(3))[0].permute(0, 3, 1, 2)
        for which in (run, replace(run, avatar=small))
    )
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "ply_bytes": (run.folder / "model.ply").stat().st_size,
        "gaussians": len(small),
        "psnr_to_original": float(metrics.psnr(a, b).mean()),
    }
