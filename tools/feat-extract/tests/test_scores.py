"""Scores beside scikit-learn's."""

import numpy as np
import pytest
from feat_extract.config import CLASSES
from feat_extract.labels import write_table
from feat_extract.scores import score_files, scores
from recon4d import InputError
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score


@pytest.mark.parametrize("seed", range(5))
def test_scores_beside_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, said = rng.random((40, 5)) < 0.3, rng.random((40, 5)) < 0.4
    labels[:, 3], said[:, 4] = False, False  # a class that does not occur, one that is never said
    found = scores(labels, said, CLASSES)
    options = {"average": None, "zero_division": 0}
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        np.testing.assert_allclose([found["classes"][c][name] for c in CLASSES], function(labels, said, **options))
    occur = labels.any(0)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro", zero_division=0))
    assert found["uf1"] == pytest.approx(f1_score(labels[:, occur], said[:, occur], average="macro", zero_division=0))
    assert found["uar"] == pytest.approx(recall_score(labels[:, occur], said[:, occur], average="macro"))
    assert found["exact"] == pytest.approx(accuracy_score(labels, said))
    assert found["classes"]["positive"]["labelled"] == labels[:, 0].sum()


def test_perfect_and_empty():
    labels = np.eye(3, dtype=int)
    assert scores(labels, labels, list("abc"))["macro_f1"] == 1
    assert scores(0 * labels, 0 * labels, list("abc"))["uf1"] == 0


def test_files_must_fit(tmp_path):
    rows = [{"sequence": f"s{i}", "split": "test" if i else "train", "a": i % 2, "b": 1} for i in range(4)]
    write_table(tmp_path / "labels.csv", rows)
    write_table(tmp_path / "some.csv", [{"id": f"s{i}", "b": 1, "a": i % 2} for i in (3, 1, 2)])
    found = score_files(tmp_path / "labels.csv", tmp_path / "some.csv", ["a", "b"], "test")
    assert found["rows"] == 3 and found["macro_f1"] == 1
    for split, name, message in (
        (None, "s1", r"some.csv lacks s0 and 0 others"),
        ("other", "s1", "no sequence of the split other"),
        ("test", "x", "no labels for x"),
    ):
        write_table(tmp_path / "some.csv", [{"id": i, "a": 1, "b": 1} for i in (name, "s2", "s3")])
        with pytest.raises(InputError, match=message):
            score_files(tmp_path / "labels.csv", tmp_path / "some.csv", ["a", "b"], split)
