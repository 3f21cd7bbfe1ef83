"""What a preset's run to its end would cost on this machine, from a few of its steps.

    python bench/relight_full.py CAPTURE [PRESET]      PRESET is full where none is given

Steps are taken with the coarsest levels of the hash grid, with half and with all of them, and in the mesh phase; their
CPU seconds, which other work on the machine hardly changes, are added up over the preset's schedule. The largest memory
is what the process held.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from eyeball_relight import captures, config, marching, surface_phase, training
from eyeball_relight.captures import Capture
from eyeball_relight.config import Config
from eyeball_relight.field import Field, new_field
from eyeball_relight.flash import flash_intensity
from eyeball_relight.rays import draw, pool_of

STEPS = 3  # that are timed of each kind, after one to warm up
GIB = 2**20  # of getrusage's kibibytes


def volume_steps(settings: Config, capture: Capture, field: Field, at: int) -> float:
    """CPU seconds of a step of volume rendering as it is at step `at`, without the cached distances."""
    optimizer, pool, intensity = training.adam(field), pool_of(capture), flash_intensity(settings, capture)
    grid, spent = torch.zeros((settings.train.grid + 1,) * 3), 0.0
    marching.update_grid(grid, field, field.active(at), 0)
    rays = settings.train.samples // settings.train.per_ray
    for step in range(STEPS + 1):
        start, generator = time.process_time(), training.generator_of(settings.seed, step)
        pixels = draw(pool, rays, generator)
        batch, sampled = training.gather(field, capture, grid, pixels, at, generator)
        terms = training.volume_terms(field, capture.camera, batch, field.active(at), intensity)
        rays = min(4 * settings.train.samples, round(settings.train.samples / settings.train.per_ray * rays / sampled))
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.process_time() - start if step else 0.0
    return spent / STEPS


def mesh_steps(settings: Config, capture: Capture, field: Field) -> tuple[float, float]:
    """CPU seconds of a step of the mesh phase, and of what comes before its first."""
    active, intensity = field.active(settings.train.mesh_render_iter), flash_intensity(settings, capture)
    start = time.process_time()
    views = surface_phase.surface_views(field, active, capture)
    before, start = time.process_time() - start, time.process_time()
    for step in range(STEPS):
        generator = training.generator_of(settings.seed, step)
        terms = surface_phase.surface_terms(field, capture, views, active, intensity, generator)
        torch.stack(list(terms.values())).sum().backward()
    return (time.process_time() - start) / STEPS, before


def main() -> None:
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    settings = config.load(Path(sys.argv[1]) / "config.yaml", (sys.argv[2:] or ["full"])[0])
    plan, model = settings.train, settings.model
    capture = captures.read(settings.folder, print)
    field = new_field(settings, len(capture))
    with torch.no_grad():  # a little of both eyes is in the way of rays, wherever they are
        field.eye_centres[:] = torch.tensor([[0.2, 0.2, 0.3], [-0.2, 0.2, 0.3]])
    grown = (model.levels - model.init_level) * model.level_grow_iter
    at = [0, min(grown // 2, plan.mesh_render_iter - 1), min(grown, plan.mesh_render_iter - 1)]
    steps = [volume_steps(settings, capture, field, step) for step in at]
    start = time.process_time()
    grid = torch.zeros((plan.grid + 1,) * 3)
    marching.update_grid(grid, field, field.active(at[-1]), 1)
    update = time.process_time() - start
    mesh, before = mesh_steps(settings, capture, field)
    volume = float(np.interp(np.arange(plan.mesh_render_iter), at, steps).sum())
    whole = volume + plan.mesh_render_iter / plan.grid_every * update
    whole += before + (plan.iterations - plan.mesh_render_iter) * mesh
    found = {
        "views": len(capture),
        "pixels": capture.camera.width,
        "threads": torch.get_num_threads(),
        "levels": [len(field.active(step)) for step in at],
        "cpu_seconds_of_a_step": [round(seconds, 2) for seconds in steps],
        "cpu_seconds_of_cached_distances": round(update, 2),
        "cpu_seconds_of_a_mesh_step": round(mesh, 2),
        "steps": [plan.mesh_render_iter, plan.iterations - plan.mesh_render_iter],
        "cpu_hours_extrapolated": round(whole / 3600, 1),
        "largest_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB, 2),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
