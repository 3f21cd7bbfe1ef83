"""The Click pieces that every tool shares: common options, progress on stderr, errors to exit codes, JSON to stdout."""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from recon4d.files import InputError

T = TypeVar("T")

device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto: CUDA where there is one."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers.")
force_option = click.option("--force", is_flag=True, help="Replace an output that exists.")


class Group(click.Group):
    """A Click group that prints InputError without a traceback and exits 2, and exits 130 on Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except BrokenPipeError:
            # Point stdout elsewhere, so that the interpreter's own flush at exit does not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


class Command(click.Command):
    """A command whose options may also be written with underscores: --work_name for --work-name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts + parameter.secondary_opts}

        def dashed(word: str) -> str:
            name, equals, value = word.partition("=")
            other = "--" + name[2:].replace("_", "-")
            return other + equals + value if name.startswith("--") and other in known else word

        return super().parse_args(ctx, [dashed(word) for word in args])


def pick_device(name: str) -> "Any":
    """`auto`, `cpu`, `cuda` or `cuda:N` as a torch.device. Raises InputError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name} is not a device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


def check_address(host: str, port: int) -> None:
    """Raise InputError unless a server can listen there; port 0 is any free one. viser would take the next port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise InputError(f"--host {host} is not a host's name or address; leave it away") from error
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port} of --host {host} cannot be used ({error}); give another, or 0") from error


def claim_output(path: str | Path, force: bool) -> Path:
    """`path`, if it is free to be written: missing, an empty folder, or anything with `force`. InputError otherwise."""
    path = Path(path)
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not force:
        raise InputError(f"{path} exists; give another output or --force to replace it")
    return path


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        items, description=what, total=total, console=console, disable=not console.is_terminal, transient=True
    )


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr for work that reports its own position: yields `update(done, text)`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(what, total=total, text="")

        def update(done: int, text: str = "") -> None:
            bars.update(task, completed=done, text=text)

        yield update


def log(message: str) -> None:
    """One line to stderr."""
    click.echo(message, err=True)


def print_result(result: dict) -> None:
    """Machine-readable result as one JSON object on stdout."""
    click.echo(json.dumps(result, indent=2))
