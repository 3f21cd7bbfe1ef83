"""The synthetic data set: labels are what the faces do, test people are others."""

import csv

import cv2
import numpy as np
from feat_extract import synth
from feat_extract.config import CLASSES, load_config
from recon4d.formats import track as track_format
from recon4d.head import load


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_layout_and_splits(pictures):
    dataset = pictures / synth.DATASET
    labels = rows(dataset / "labels.csv")
    assert len(labels) == 15 and all(any(row[name] == "1" for name in CLASSES) for row in labels)
    people = {split: {row["identity"] for row in labels if row["split"] == split} for split in ("train", "test")}
    assert len(people["train"]) == 2 and len(people["test"]) == 1 and not people["train"] & people["test"]
    assert {n for n in CLASSES for row in labels if row["split"] == "test" and row[n] == "1"} == set(CLASSES)
    for row in labels:
        images = sorted((dataset / "original_image" / row["sequence"]).iterdir())
        track = track_format.read(dataset / "tracks" / row["sequence"] / "track.npz")
        assert [p.name for p in images] == list(track.names) and len(images) == 4
    sample = rows(pictures / "sample_submission.csv")
    assert {row["sequence"] for row in sample} == {row["sequence"] for row in labels if row["split"] == "test"}
    assert load_config(pictures / "exp.yaml").feat3d.kind == "track"


def test_pictures_change_where_the_face_does(pictures):
    paths = sorted((pictures / synth.DATASET / "original_image" / "p00_00").iterdir())
    images = [cv2.imread(str(path)).astype(float) for path in paths]
    assert images[0].shape == (64, 64, 3)
    moved = np.abs(images[2] - images[0]).mean(-1)
    assert moved[16:56, 16:48].mean() > 1.2 * moved[:8, :8].mean()  # the face, the wall
    assert moved.mean() < 12  # a small expression


def test_expressions_rise_and_fall():
    head = load(None)
    names = list(head.expression_names)
    track = synth.random_track(head, np.zeros(head.n_shape, np.float32), {"positive"}, 40, 64, 5)
    smile = track.expression[:, names.index("mouthSmileLeft")]
    frown = track.expression[:, names.index("mouthFrownLeft")]
    assert 0.2 < smile.max() < 0.95 and 10 < smile.argmax() < 30
    assert smile[:5].max() < 0.5 * smile.max() and smile[-5:].max() < 0.5 * smile.max()
    assert frown.max() < 0.15
    again = synth.random_track(head, np.zeros(head.n_shape, np.float32), {"positive"}, 40, 64, 5)
    np.testing.assert_array_equal(again.expression, track.expression)


def test_every_class_moves_blendshapes_of_the_head():
    stems = {n.removesuffix("Left").removesuffix("Right") for n in load(None).expression_names}
    assert set(synth.EXPRESSIONS) == set(CLASSES)
    assert all(set(units) <= stems for units in synth.EXPRESSIONS.values())
