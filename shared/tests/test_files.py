"""Atomic writes and the shared command-line pieces."""

import io
import os
import pickle

import click
import numpy as np
import pytest
import scipy.sparse
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
    with pytest.raises(InputError, match="single array"):
        files.read_npz(tmp_path / "a.npy")


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not a readable npz"):
        files.read_npz(tmp_path / "a.npz")


def test_restricted_unpickle_reads_numpy_and_sparse():
    data = {"a": np.arange(6).reshape(2, 3), "s": scipy.sparse.eye(4, format="csc"), "x": np.float32(2)}
    data["s"] = scipy.sparse.csc_matrix(data["s"])
    for protocol in (2, 4, 5):
        stream = io.BytesIO(pickle.dumps(data, protocol=protocol))
        found = files.restricted_unpickle(stream, files.numpy_globals(), "x.pkl")
        np.testing.assert_array_equal(found["a"], data["a"])
        np.testing.assert_array_equal(found["s"].toarray(), np.eye(4))
        assert found["x"] == 2


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


def test_claim_output(tmp_path):
    assert cli.claim_output(tmp_path / "new", False) == tmp_path / "new"
    assert cli.claim_output(tmp_path, False) == tmp_path  # an empty folder
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="--force"):
            cli.claim_output(taken, False)
        assert cli.claim_output(taken, True) == taken
