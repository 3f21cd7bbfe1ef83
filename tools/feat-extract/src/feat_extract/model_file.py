"""The trained model as a file: TorchScript, with a note inside on what it reads and answers."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from recon4d import InputError
from recon4d.files import atomic_path

from feat_extract.clips import Batch, Streams
from feat_extract.config import Config
from feat_extract.fusion import Fusion

FORMAT = "feat-extract-1"
EXTRA = "feat_extract.json"  # the note's name inside the file


def write(model: Fusion, config: Config, streams: Streams, data: Batch, path: Path) -> None:
    """Write the model as TorchScript, atomically, with a note on what it reads and answers."""
    note = {
        "format": FORMAT,
        "classes": config.classes,
        "length": config.sequences.length,
        "streams": {name: {**kind, "dim": data[0][name].shape[2]} for name, kind in streams.kinds.items()},
    }
    script = torch.jit.script(model)
    with atomic_path(path) as temporary:
        torch.jit.save(script, temporary, _extra_files={EXTRA: json.dumps(note)})


def read(path: Path) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """A TorchScript file on the CPU and the note inside it, {} for a file without. A TorchScript file is code: it runs.

    Raises InputError for anything else.
    """
    extra = {EXTRA: ""}
    try:
        model = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
        note = json.loads(extra[EXTRA] or "{}")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a readable TorchScript file ({_reason(path, error)})") from error
    if note and not (note.get("format") == FORMAT and {"classes", "length", "streams"} <= set(note)):
        raise InputError(f"{path} has the format {note.get('format')}, or not all of {FORMAT}; train it again")
    return model.eval(), note


def _reason(path: Path, error: Exception) -> str:
    """Why a file is no TorchScript, and what to do about it."""
    script = "save it with torch.jit.script(model).save(path)"
    with open(path, "rb") as file:
        start = file.read(512)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names) and not any("/code/" in name for name in names):
            return f"it is of torch.save: weights or a pickled model, without the model's code; {script}"
        if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
            return f"it is of torch.export; {script}"
    elif start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return f"it is a pickle of torch.save, without the model's code; {script}"
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return f"it is of safetensors: weights without the model's code; {script}"
    elif start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    elif b"<html" in start.lower():
        return "it is a web page; the download was refused"
    return f"{' '.join(str(error).split())[:200]}; fetch or train it again"


def check(note: dict[str, Any], config: Config, streams: Streams, path: Path) -> None:
    """Raise InputError where the config or the features differ from what the note says the model was trained on."""
    if not note:
        return  # somebody else's file: the config is all there is to go by
    for key, mine, what in (
        ("classes", config.classes, "classes"),
        ("length", config.sequences.length, "sequences.length"),
    ):
        if note[key] != mine:
            raise InputError(f"{path} was trained with {what} {note[key]}, the config has {mine}; correct the config")
    if set(note["streams"]) != set(streams.kinds):
        raise InputError(
            f"{path} reads {', '.join(note['streams'])}, model.streams has {', '.join(streams.kinds)}; "
            "correct the config"
        )
    for stream, kind in streams.kinds.items():
        theirs = note["streams"][stream]
        for field in kind:
            if field in theirs and theirs[field] != kind[field]:
                raise InputError(
                    f"{path} was trained on {stream} with {field} {theirs[field]}, here it is {kind[field]}; "
                    "extract the features the same way"
                )
