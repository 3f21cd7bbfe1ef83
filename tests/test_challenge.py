"""The challenge demo on a few tiny sequences: prep-faces and feat-extract join through files."""

import csv
import json

import pytest
from demos import ROOT, run_demo

STEPS = ["synth", "crop", "feat2d", "landmarks", "track", "feat3d", "train", "check", "submit", "evaluate"]
DEMO = ROOT / "demo" / "challenge_submission.sh"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "challenge é"
    options = "--train-people 2 --test-people 1 --clips 3 --frames 4 --size 128"
    result = run_demo(DEMO, out, SYNTH_OPTIONS=options, EPOCHS="2")
    assert result.returncode == 0, result.stderr
    return out, result


def test_summary_and_submission(demo):
    out, result = demo
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"seconds", "macro_f1", "rows"} and summary["rows"] == 3
    assert list(summary["seconds"]) == STEPS
    assert all(s > 0 for s in summary["seconds"].values()) and 0 <= summary["macro_f1"] <= 1
    assert "macro F1" in result.stdout and "(missing)" not in result.stdout
    sample = list(csv.reader((out / "data" / "sample_submission.csv").read_text().splitlines()))
    rows = list(csv.reader((out / "data" / "submission.csv").read_text().splitlines()))
    assert rows[0] == sample[0] and [row[0] for row in rows] == [row[0] for row in sample]


def test_all_that_was_made_is_there(demo):
    out, _ = demo
    found = json.loads((out / "check.json").read_text())
    assert found["problems"] == [] and len(found["sequences"]) == 9
    assert all(set(counts.values()) == {4} for counts in found["sequences"].values())
    assert found["kinds"]["feat2d"]["backbone"] == "timm:tf_efficientnet_lite0"
    trained, submitted = (json.loads((out / f"{step}.json").read_text()) for step in ("train", "submit"))
    assert trained["sha256"] == submitted["sha256"]


def test_refusals(demo, tmp_path):
    out, _ = demo
    for arguments, place, options, message in (
        (("x",), tmp_path / "a", "", "takes no arguments"),
        ((), out, "", "exists; remove it"),
        ((), tmp_path / "b", "--clips 0", "--clips"),
    ):
        result = run_demo(DEMO, place, *arguments, SYNTH_OPTIONS=options)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
