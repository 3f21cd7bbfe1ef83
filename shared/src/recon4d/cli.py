"""The Click pieces that every tool shares: common options, progress on stderr, errors to exit codes, JSON to stdout."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from recon4d.files import InputError

T = TypeVar("T")

device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto: CUDA where there is one."
)


class Real(click.FloatRange):
    """A finite number, within bounds where they are given: `nan` and `inf` are refused. Else as click.FloatRange."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


seed_type = click.IntRange(0, 2**31 - 1)
seed_option = click.option("--seed", type=seed_type, default=0, show_default=True, help="Seed of all random numbers.")
force_option = click.option("--force", is_flag=True, help="Replace what an earlier run of this command wrote.")


class Group(click.Group):
    """A Click group whose errors are one line on stderr, `error: ...`, without a traceback.

    What a user can cause exits 2: InputError, wrong options, files that cannot be read or written, too little memory.
    Ctrl-C exits 130.
    """

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            answer = super().main(args, standalone_mode=False, **extra)
        except click.Abort:
            log("stopped")
            sys.exit(130)
        except BrokenPipeError:
            # Point stdout elsewhere, so that the interpreter's own flush at exit does not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            said = _said(error)
            if said is None:
                raise
            log("error: " + " ".join(said.split()))
            sys.exit(2)
        sys.exit(answer if isinstance(answer, int) else 0)


def _said(error: Exception) -> str | None:
    """What to tell a user who caused an error; None where it is no user's."""
    if isinstance(error, click.ClickException):
        return error.format_message().removesuffix(".")
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory for this input; give a smaller one"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)} cannot be used ({error.strerror})"
    return None


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
    click.echo(message.encode(errors="backslashreplace").decode(), err=True)  # names need not be UTF-8


def print_result(result: dict[str, Any]) -> None:
    """Machine-readable result as one JSON object on stdout. NaN and infinity, which JSON lacks, become null."""
    click.echo(json.dumps(_finite(result), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
