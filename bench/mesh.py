"""Mesh rendering on this machine: ours against PyTorch3D and against a plain single-threaded Numba loop, in one run.

    python bench/mesh.py            all sizes, a few minutes; writes docs/benchmarks-mesh.md and its plot
    python bench/mesh.py --quick    small sizes, prints only

Times are the best of several runs, so that other work on the machine shows as little as possible; read the ratios.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numba import njit
from recon4d import mesh
from recon4d.mesh.barycentric import barycentrics

ROOT = Path(__file__).resolve().parent.parent


def best(run: Callable[[], object], budget: float = 1.0, most: int = 60) -> float:
    """Seconds of the fastest of up to `most` runs within `budget` seconds (after one to warm up)."""
    run()
    fastest, end = float("inf"), time.perf_counter() + budget
    for _ in range(most):
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        if now > end:
            break
    return fastest


def bumpy_ball(triangles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A closed bumpy ball of about `triangles` triangles that fills the view: clip positions (1, V, 4), tri (F, 3)."""
    n = max(4, round((triangles / 2) ** 0.5))
    theta, phi = torch.linspace(0.01, 3.13, n + 1), torch.arange(n) * (2 * torch.pi / n)
    t, p = torch.meshgrid(theta, phi, indexing="ij")
    radius = 1 + 0.06 * (5 * t).sin() * (4 * p).cos() + 0.03 * (11 * t).cos() * (9 * p).sin()
    x, y, z = radius * t.sin() * p.cos(), radius * t.cos(), radius * t.sin() * p.sin() - 4
    near, far = 0.1, 20.0
    slope, offset = (far + near) / (near - far), 2 * far * near / (near - far)
    pos = torch.stack([3.4 * x, 3.4 * y, slope * z + offset, -z], -1).view(1, -1, 4)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    a, b, c, d = i * n + j, i * n + (j + 1) % n, (i + 1) * n + (j + 1) % n, (i + 1) * n + j
    tri = torch.cat([torch.stack([a, b, c], -1).view(-1, 3), torch.stack([a, c, d], -1).view(-1, 3)])
    return pos, tri.int()


@njit(cache=True)
def plain_loop(pos, tri, height, width, ids, depth):
    """What one writes first: each triangle, each pixel of its box, three edge functions. Returns fragments, rows."""
    ids[:] = -1
    depth[:] = 1.0
    fragments = rows = 0
    for f in range(len(tri)):
        a, b, c = pos[tri[f, 0]], pos[tri[f, 1]], pos[tri[f, 2]]
        ax, ay, az = (a[0] / a[3] + 1) * width / 2, (1 - a[1] / a[3]) * height / 2, a[2] / a[3]
        bx, by, bz = (b[0] / b[3] + 1) * width / 2, (1 - b[1] / b[3]) * height / 2, b[2] / b[3]
        cx, cy, cz = (c[0] / c[3] + 1) * width / 2, (1 - c[1] / c[3]) * height / 2, c[2] / c[3]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        left, right = max(int(min(ax, bx, cx) - 0.5), 0), min(int(max(ax, bx, cx) + 0.5), width - 1)
        top, bottom = max(int(min(ay, by, cy) - 0.5), 0), min(int(max(ay, by, cy) + 0.5), height - 1)
        for y in range(top, bottom + 1):
            hit = 0
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1 - u - v
                if u >= 0 and v >= 0 and w >= 0:
                    hit += 1
                    z = u * az + v * bz + w * cz
                    if z < depth[y, x]:
                        depth[y, x] = z
                        ids[y, x] = f
            fragments += hit
            rows += hit > 0
    return fragments, rows


def pytorch3d_inputs(pos: torch.Tensor, tri: torch.Tensor):
    from pytorch3d.structures import Meshes

    ndc = pos[..., :2] / pos[..., 3:]
    return Meshes([torch.cat([-ndc[0, :, :1], ndc[0, :, 1:], pos[0, :, 3:]], -1)], [tri.long()])


def pytorch3d_rasterize(meshes, size: int):
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes

    return rasterize_meshes(meshes, size, blur_radius=0.0, faces_per_pixel=1, perspective_correct=True)


def measure(triangles: int, size: int, pytorch3d_seconds: float) -> dict:
    """One row of the table. PyTorch3D only where it is expected to take at most `pytorch3d_seconds`."""
    pos, tri = bumpy_ball(triangles)
    points, faces = pos[0].numpy(), tri.numpy()
    ids, depth = np.empty((size, size), np.int32), np.empty((size, size), np.float32)
    fragments, rows = plain_loop(points, faces, size, size, ids, depth)
    row = {
        "triangles": len(tri),
        "size": size,
        "vertices": pos.shape[1],
        "fragments": fragments,
        "rows": rows,
    }
    row["loop"] = best(lambda: plain_loop(points, faces, size, size, ids, depth))
    weight = torch.rand(1, size, size, 3)
    attr = torch.rand(1, pos.shape[1], 3)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        row[f"visibility_{threads}"] = best(lambda: mesh.visibility(pos, tri, (size, size)))

        def forward(leaf: torch.Tensor):
            rast = mesh.rasterize(leaf, tri, (size, size))
            return mesh.interpolate(attr, rast, tri)

        row[f"forward_{threads}"] = best(lambda forward=forward: forward(pos))
        leaf = pos.clone().requires_grad_()
        out = forward(leaf)
        row[f"backward_{threads}"] = best(
            lambda out=out, leaf=leaf: torch.autograd.grad(out, leaf, weight, retain_graph=True)
        )
    if 2.2e-9 * len(tri) * size * size < pytorch3d_seconds:
        torch.set_num_threads(1)
        leaf = pos.clone().requires_grad_()
        start = time.process_time()
        found, _, bary, _ = pytorch3d_rasterize(pytorch3d_inputs(leaf, tri), size)
        row["pytorch3d_forward"] = time.process_time() - start
        start = time.process_time()
        (bary[..., 0, :] * weight).sum().backward()
        row["pytorch3d_backward"] = time.process_time() - start
        row |= agreement(pos, tri, size, found[..., 0], bary[..., 0, :].detach())
    return row


def agreement(pos: torch.Tensor, tri: torch.Tensor, size: int, found: torch.Tensor, bary: torch.Tensor) -> dict:
    """How PyTorch3D's picture and ours differ, and both from float64."""
    rast = mesh.rasterize(pos, tri, (size, size))
    differ = rast.tri_id != found.int()
    same = ~differ & rast.mask
    exact, _ = barycentrics(pos.double(), tri, rast.tri_id)
    # at pixels that differ, how far (barycentric) either triangle is from holding the centre
    either = [
        barycentrics(pos.double(), tri, torch.where(differ, ids.int(), -1))[0].amin(-1)[differ]
        for ids in (rast.tri_id, found)
    ]
    return {
        "differ": differ.float().mean().item(),
        "differ_pixels": int(differ.sum()),
        "differ_edge": float(torch.stack(either).abs().amax()) if differ.any() else 0.0,
        "bary_max": (rast.bary - bary)[same].abs().max().item(),
        "bary_mean": (rast.bary - bary)[same].abs().mean().item(),
        "bary_ours_exact": (rast.bary - exact)[same].abs().max().item(),
        "bary_pytorch3d_exact": (bary - exact)[same].abs().max().item(),
    }


def machine() -> dict:
    """What this machine can do: copy bandwidth and float32 arithmetic of one and two threads, measured here."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    source = torch.zeros(1 << 25)
    target = torch.empty_like(source)
    square = torch.rand(1024, 1024)
    result = {"cpu": name, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        result[f"bandwidth_{threads}"] = 2 * source.nbytes / best(lambda: target.copy_(source), 0.5)
        result[f"flops_{threads}"] = 2 * 1024**3 / best(lambda: square @ square, 0.5)
    return result


def roofline(row: dict, limits: dict) -> dict:
    """The least time the scene needs on this machine, by bytes and by arithmetic, and the share reached.

    Bytes, each once: 16 per vertex, 12 per triangle, and 8 written per pixel. Arithmetic: 20 operations per
    vertex, 60 per triangle (areas, plane of z, six divisions of edges), 20 per row of a triangle, 5 per fragment.
    """
    moved = 16 * row["vertices"] + 12 * row["triangles"] + 8 * row["size"] ** 2
    operations = 20 * row["vertices"] + 60 * row["triangles"] + 20 * row["rows"] + 5 * row["fragments"]
    out = {"bytes": moved, "operations": operations}
    for threads in (1, 2):
        least = max(moved / limits[f"bandwidth_{threads}"], operations / limits[f"flops_{threads}"])
        out[f"share_{threads}"] = least / row[f"visibility_{threads}"]
    return out


def cuda_rows(quick: bool) -> list[dict]:
    """On CUDA: ours on nvdiffrast against nvdiffrast called directly. Empty without a device."""
    if mesh.backends()["nvdiffrast"] is not None:
        return []
    import nvdiffrast.torch as dr

    context, rows = dr.RasterizeCudaContext(), []

    def timed(run: Callable[[], object]) -> float:
        def wait() -> None:
            run()
            torch.cuda.synchronize()

        return best(wait)

    for triangles, size in ((9000, 512),) if quick else ((9000, 512), (100_000, 1024), (1_000_000, 2048)):
        pos, tri = (tensor.cuda() for tensor in bumpy_ball(triangles))
        direct = timed(lambda p=pos, t=tri, s=size: dr.rasterize(context, p, t, (s, s)))
        ours = timed(lambda p=pos, t=tri, s=size: mesh.visibility(p, t, (s, s)))
        rows.append({"triangles": len(tri), "size": size, "nvdiffrast": direct, "ours": ours})
    return rows


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}"


def ratio(row: dict, over: str, under: str) -> str:
    return f"{row[over] / row[under]:,.0f}" if over in row else ""


def report(rows: list[dict], limits: dict, cuda: list[dict]) -> str:
    lines = [
        "# Mesh rendering",
        "",
        f"Measured by `python bench/mesh.py` on {limits['cpu']}, {limits['cores']} cores; torch {torch.__version__}. "
        "Milliseconds, best of several runs; every ratio is of times of the same run. The load average was "
        f"{limits['load']:.1f} when it began: where that is not far below the number of cores, times are inflated and "
        "a second thread gains little or nothing.",
        "",
        "## Visibility",
        "",
        "One closed bumpy ball that fills a square image, both sides drawn. *loop* is a plain single-threaded Numba "
        "loop over triangles and the pixels of their boxes; *PyTorch3D* is `rasterize_meshes` on the CPU (blur 0, one "
        "face per pixel; it has one thread), run once, in CPU time, so that other work on the machine does not "
        "inflate it, and only where it takes less than about 20 s.",
        "",
        "| triangles | pixels | ours, 1 thread | ours, 2 threads | loop | PyTorch3D "
        "| loop / ours (1) | PyTorch3D / ours (1) | PyTorch3D / ours (2) | roofline share (1) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        one, two, loop = row["visibility_1"], row["visibility_2"], row["loop"]
        slow = ms(row.get("pytorch3d_forward"))
        lines.append(
            f"| {row['triangles']:,} | {row['size']}² | {ms(one)} | {ms(two)} | {ms(loop)} | {slow} "
            f"| {loop / one:.1f} | {ratio(row, 'pytorch3d_forward', 'visibility_1')} "
            f"| {ratio(row, 'pytorch3d_forward', 'visibility_2')} | {roofline(row, limits)['share_1']:.1%} |"
        )
    lines += [
        "",
        "## Forward and backward",
        "",
        "Forward: visibility, barycentrics, depth and three interpolated channels. Backward: from the channels to the "
        "positions. PyTorch3D's forward has no interpolation, its backward is that of the barycentrics.",
        "",
        "| triangles | pixels | forward (1) | forward (2) | backward (1) | backward (2) "
        "| PyTorch3D forward / ours (2) | PyTorch3D backward | / ours (2) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        back = f"{row['pytorch3d_backward'] / row['backward_2']:.1f}" if "pytorch3d_backward" in row else ""
        lines.append(
            f"| {row['triangles']:,} | {row['size']}² | {ms(row['forward_1'])} | {ms(row['forward_2'])} "
            f"| {ms(row['backward_1'])} | {ms(row['backward_2'])} | {ratio(row, 'pytorch3d_forward', 'forward_2')} "
            f"| {ms(row.get('pytorch3d_backward'))} | {back} |"
        )
    lines += [
        "",
        "## Agreement with PyTorch3D",
        "",
        "Share of pixels with another triangle; how far outside (barycentric) either triangle is at those pixels; the "
        "difference of barycentrics elsewhere; and of each from float64 (PyTorch3D adds 1e-8 to every area, which "
        "shows where triangles are small).",
        "",
        "| triangles | pixels | other triangle | from its edge | barycentrics, largest | mean | ours - float64 "
        "| PyTorch3D - float64 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if "differ" in row:
            lines.append(
                f"| {row['triangles']:,} | {row['size']}² | {row['differ']:.1e} ({row['differ_pixels']} px) "
                f"| {row['differ_edge']:.0e} | {row['bary_max']:.0e} | {row['bary_mean']:.0e} "
                f"| {row['bary_ours_exact']:.0e} | {row['bary_pytorch3d_exact']:.0e} |"
            )
    lines += [
        "",
        "## Roofline",
        "",
        f"This machine copies {limits['bandwidth_1'] / 1e9:.1f} GB/s and multiplies matrices at "
        f"{limits['flops_1'] / 1e9:.0f} GFLOP/s with one thread ({limits['bandwidth_2'] / 1e9:.1f} GB/s, "
        f"{limits['flops_2'] / 1e9:.0f} GFLOP/s with two). "
        + " ".join((roofline.__doc__ or "").split("\n\n")[1].split()),
        "",
        "| triangles | pixels | MB | Mop | fragments | share, 1 thread | share, 2 threads |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        roof = roofline(row, limits)
        lines.append(
            f"| {row['triangles']:,} | {row['size']}² | {roof['bytes'] / 1e6:.2f} | {roof['operations'] / 1e6:.1f} "
            f"| {row['fragments']:,} | {roof['share_1']:.1%} | {roof['share_2']:.1%} |"
        )
    lines += [
        "",
        "Where the share is small, the time goes into what neither bound counts: rows of a few pixels, which do not "
        "fill a vector, and the branches between them.",
        "",
        "## CUDA",
        "",
    ]
    if cuda:
        lines += ["| triangles | pixels | nvdiffrast | ours on it |", "| ---: | ---: | ---: | ---: |"]
        lines += [f"| {r['triangles']:,} | {r['size']}² | {ms(r['nvdiffrast'])} | {ms(r['ours'])} |" for r in cuda]
    else:
        lines.append("Unmeasured: there was no CUDA device. The script measures it where there is one.")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    series = [
        ("visibility_1", "ours, 1 thread", "C0o-"),
        ("visibility_2", "ours, 2 threads", "C0s--"),
        ("forward_2", "ours, with interpolation, 2 threads", "C2^-"),
        ("loop", "plain Numba loop", "C1v-"),
        ("pytorch3d_forward", "PyTorch3D", "C3d-"),
    ]
    counts = sorted({row["triangles"] for row in rows})
    middle = min(counts, key=lambda count: abs(count - 9000))
    for axis, key, chosen in (
        (axes[0], "triangles", [row for row in rows if row["size"] == 512]),
        (axes[1], "size", [row for row in rows if row["triangles"] == middle]),
    ):
        for name, label, style in series:
            points = [(row[key], row[name] * 1e3) for row in sorted(chosen, key=lambda row: row[key]) if name in row]
            if points:
                axis.loglog(*zip(*points, strict=True), style, label=label)
        axis.grid(alpha=0.3, which="both")
    axes[0].set(xlabel="triangles, at 512 x 512", ylabel="milliseconds")
    axes[1].set(xlabel=f"image side in pixels, with {middle:,} triangles")
    sizes = sorted({row["size"] for row in rows if row["triangles"] == middle})
    axes[1].set_xticks(sizes, [str(size) for size in sizes])
    axes[1].minorticks_off()
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; print, write nothing")
    parser.add_argument("--pytorch3d-seconds", type=float, default=20.0, help="skip PyTorch3D where it takes longer")
    parser.add_argument("--json", type=Path, help="also write the raw numbers there")
    options = parser.parse_args()
    if options.quick:
        cases = [(1000, 128), (9000, 224), (9000, 512)]
    else:
        cases = [(count, 512) for count in (1000, 9000, 100_000, 1_000_000)]
        cases += [(9000, size) for size in (128, 256, 1024, 2048)] + [(1_000_000, 2048)]
    limits = machine()
    rows = []
    for triangles, size in cases:
        rows.append(measure(triangles, size, options.pytorch3d_seconds))
        print(
            f"{rows[-1]['triangles']:>9,} triangles {size:>5} px: ours {ms(rows[-1]['visibility_1'])} ms (1 thread), "
            f"{ms(rows[-1]['visibility_2'])} ms (2), loop {ms(rows[-1]['loop'])} ms, "
            f"PyTorch3D {ms(rows[-1].get('pytorch3d_forward')) or '-'} ms",
            flush=True,
        )
    text = report(rows, limits, cuda_rows(options.quick))
    if options.json:
        options.json.write_text(json.dumps({"machine": limits, "rows": rows}, indent=1))
    if options.quick:
        print(text)
    else:
        note = "\n![Time against triangles and resolution](images/mesh-scaling.png)\n"
        text = text.replace("\n## Forward and backward", note + "\n## Forward and backward")
        (ROOT / "docs/benchmarks-mesh.md").write_text(text)
        plot(rows, ROOT / "docs/images/mesh-scaling.png")


if __name__ == "__main__":
    main()
