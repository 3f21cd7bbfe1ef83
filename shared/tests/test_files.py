"""Atomic writes and the shared command-line pieces."""

import gzip
import io
import json
import os
import zipfile

import click
import numpy as np
import pytest
from click.testing import CliRunner
from recon4d import InputError, cli, files


def test_atomic_write_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    files.write_text(path, "one")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    files.write_text(path, "two")
    assert path.read_text() == "two"
    old = os.umask(0o027)
    try:
        files.write_text(path, "three")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


def test_npy_is_not_an_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(InputError, match="not a readable npz file"):
        files.read_npz(tmp_path / "a.npy")


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not a readable npz"):
        files.read_npz(tmp_path / "a.npz")


def test_containers_that_say_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (5, 10**9)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 80)
    with pytest.raises(InputError, match=r"a\.npz is not a readable npz file .*holds 80 bytes"):
        files.read_npz(path)
    (tmp_path / "x.npy").write_bytes(header.getvalue())
    with pytest.raises(InputError, match=r"x\.npy is not a readable npy file .*holds 0 bytes"):
        files.read_npy(tmp_path / "x.npy")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(300 << 20))
    with pytest.raises(InputError, match="unpacks to 300 MiB"):
        files.read_npz(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", b"x")
    with pytest.raises(InputError, match="packed in an unusual way"):
        files.read_npz(path)
    whole = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(mark) + place] |= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="is encrypted"):
        files.read_npz(path)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(300 << 20), 1))
    with pytest.raises(InputError, match="unpacks to over"):
        files.read_gzip(tmp_path / "a.gz")


def test_json_of_strangers(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"[" * 100_000, b"9" * 5000, b"\xff\xfe", b"{", b"", b"nope"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json is not readable JSON") as raised:
            files.read_json(path)
        assert len(str(raised.value)) < 400
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@click.group(cls=cli.Group)
def tool():
    pass


@tool.command()
@cli.device_option
def fail(device):
    cli.pick_device(device)
    raise InputError("clip.mp4 is broken; record it again")


def test_input_error_exits_2_with_one_sentence():
    result = CliRunner().invoke(tool, ["fail", "--device", "cpu"])
    assert result.exit_code == 2 and result.stderr == "error: clip.mp4 is broken; record it again\n"
    for device in ("cuda:99", "tpu", "meta"):
        result = CliRunner().invoke(tool, ["fail", "--device", device])
        assert result.exit_code == 2 and device in result.stderr and "Traceback" not in result.stderr


def test_results_are_strict_json(capsys):
    cli.print_result({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (2, None)}})
    said = capsys.readouterr().out
    assert json.loads(said, parse_constant=lambda word: pytest.fail(word)) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": [2, None]},
    }


@tool.command()
@click.option("--rate", type=cli.Real(0, 10))
@click.option("--path")
@cli.seed_option
def work(rate, path, seed):
    if path == "memory":
        np.empty(1 << 50)
    if path == "bug":
        raise KeyError("bug")
    if path == "stop":
        raise KeyboardInterrupt
    if path is not None:
        open(path).close()


def test_all_errors_are_one_line(tmp_path):
    run = CliRunner().invoke
    for args, said in (
        (["work", "--rate", "nan"], "'--rate': nan is not a finite number"),
        (["work", "--rate", "inf"], "'--rate'"),
        (["work", "--rate", "1e400"], "'--rate'"),
        (["work", "--rate", "x"], "'--rate': 'x' is not a valid float"),
        (["work", "--seed", "-1"], "'--seed'"),
        (["work", "--seed", "1" * 40], "'--seed'"),
        (["work", "--what"], "No such option '--what'"),
        (["nothing"], "No such command 'nothing'"),
        (["work", "--path", str(tmp_path)], f"{tmp_path} cannot be used (Is a directory)"),
        (["work", "--path", str(tmp_path / "a" / "b")], "cannot be used (No such file or directory)"),
        (["work", "--path", "memory"], "not enough memory"),
    ):
        result = run(tool, args)
        assert result.exit_code == 2, args
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and said in result.stderr, args
    assert run(tool, ["work", "--rate", "3"]).exit_code == 0
    assert run(tool, ["work", "--path", "stop"]).exit_code == 130
    assert isinstance(run(tool, ["work", "--path", "bug"]).exception, KeyError)  # ours: with its traceback


def test_names_that_are_not_utf8_are_said(capsys):
    cli.log("error: \udcff.png")
    assert capsys.readouterr().err == "error: \\udcff.png\n"
