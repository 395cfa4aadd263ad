"""Judging: the same steps for images and pairs; the table says the worst mistakes first."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flows.extraction.samples import Sample
from flows.training.evaluation import judge, ties
from flows.training.record import kinds_of
from flows.use.models.standing import kinds_of as told_kinds
from heads.contract import Scores
from headwater.samples import IMAGE, PAIR
from headwater.spec import ExtractorSpec

SPEC = ExtractorSpec("net", "0" * 64, resize=(8, 8))
LEFT = np.arange(8) < 4


class Values:
    """A source whose rows are the scores themselves."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def read(self, start, stop):
        return torch.tensor(self.values[start:stop])


class Says:
    """A head that scores a row by its value and finds that much in the left half."""

    name, map_size, score_limit = "says", (8, 8), None

    def __init__(self, labelled):
        self.labelled = labelled

    def score(self, values):
        return Scores(values, values[:, None, None] * torch.tensor(LEFT).float().expand(8, 8))


def judged(kind, samples, scores, labelled=False):
    data = SimpleNamespace(
        kind=kind,
        spec=SPEC,
        test=samples,
        known=[],
        readable=samples,
        head=SimpleNamespace(name="says", labelled=labelled),
        training=SimpleNamespace(options=SimpleNamespace(target_fpr=0.2)),
        check_files=lambda samples, masks: None,
        source=lambda samples: Values(scores),
        notes=list,
    )
    return judge(data, Says(labelled), Values([0.1, 0.2, 0.3, 0.4]))


@pytest.fixture
def mask(tmp_path):
    """A file that says what there is to be found: the left half."""
    path = tmp_path / "mask.png"
    Image.fromarray(np.tile(np.uint8(255) * LEFT, (8, 1))).save(path)
    return path


def test_images_are_called_at_the_threshold_and_told_worst_mistake_first(mask, tmp_path):
    def image(key, kind, mask=None):
        return Sample(key, "test", kind, (key * 32,), (tmp_path / key,), mask, "a" if mask else "")

    samples = [
        image("ok", "good"),
        image("al", "good"),
        image("fo", "dent", mask),
        image("mi", "dent", tmp_path / "gone.png"),
    ]
    got = judged(IMAGE, samples, [0.0, 2.0, 3.0, 0.1])
    assert got.calibration.threshold == pytest.approx(0.4)
    assert [(r["path"], r["verdict"], r["correct"]) for r in got.table] == [
        ("al", "anomalous", False),
        ("mi", "normal", False),
        ("ok", "normal", True),
        ("fo", "anomalous", True),
    ]
    assert list(got.table[0]) == [
        "index", "path", "kind", "score", "verdict", "correct", "margin", "map_max",
        "pixel_aupimo", "sha256",
    ]  # fmt: skip
    assert got.metrics["recall"] == 0.5
    assert got.metrics["image_auroc"] == 0.75
    # The mask that is gone leaves its image to the image metrics alone.
    assert "gone.png" in got.notes[0]
    assert "counts for image metrics only" in got.notes[0]
    assert got.masks[3] is None
    assert got.example is None  # its file is not there, which is no reason to fail


@pytest.mark.parametrize("labelled", [True, False])
def test_pairs_are_told_by_their_wrong_pixels_and_the_unlabelled_last(labelled, mask, tmp_path):
    black = tmp_path / "black.png"
    Image.new("L", (8, 8)).save(black)

    def pair(key, kind, mask=None):
        paths = (tmp_path / f"{key}-now.png", tmp_path / f"{key}-before.png")
        return Sample(f"test/{key}", "test", kind, ("a", "b"), paths, mask, "c" if mask else "")

    samples = [
        pair("found", "changed", mask),
        pair("bare", "unlabelled"),
        pair("alarm", "good", black),
    ]
    got = judged(PAIR, samples, [0.9, 0.9, 0.8], labelled)
    assert got.calibration.threshold == pytest.approx(0.5 if labelled else 0.4)
    assert (got.held_scores is None) == labelled
    told = [(r["key"], r["verdict"], r["correct"], r["wrong_pixels"]) for r in got.table]
    assert told == [
        ("test/alarm", "changed", False, 32),
        ("test/found", "changed", True, 0),
        ("test/bare", "changed", None, None),
    ]
    assert list(got.table[0]) == [
        "index", "key", "kind", "score", "verdict", "correct",
        "called_pixels", "changed_pixels", "wrong_pixels", "iou",
        "current", "history", "current_sha256", "history_sha256",
    ]  # fmt: skip
    assert (got.table[1]["called_pixels"], got.table[1]["iou"]) == (32, 1.0)
    assert (got.metrics["precision"], got.metrics["recall"]) == (0.5, 1.0)
    assert got.metrics["image_auroc"] == 1.0


def test_each_defect_has_its_aupimo_and_each_kind_their_mean(tmp_path):
    def image(key, kind, where=None):
        mask = None
        if where is not None:
            mask = tmp_path / f"{key}.png"
            Image.fromarray(np.uint8(255) * np.tile(where, (400, 1))).save(mask)
        paths = (tmp_path / key,)
        return Sample(key, "test", kind, (key * 32,), paths, mask, "a", size=(400, 400))

    left = np.arange(400) < 170
    samples = [
        image("ok", "good"),
        image("a", "dent", left),
        image("b", "dent", ~left & (np.arange(400) > 230)),  # where the head sees nothing
        image("c", "scratch", left),
    ]
    got = judged(IMAGE, samples, [0.1, 0.9, 0.9, 0.8])
    told = {row["path"]: row["pixel_aupimo"] for row in got.table}
    assert told == {"ok": None, "a": 1.0, "b": 0.0, "c": 1.0}
    figures = kinds_of(got)
    assert figures["kind/dent/pixel_aupimo"] == 0.5
    assert figures["kind/scratch/pixel_aupimo"] == 1.0
    assert got.metrics["pixel_aupimo"] == pytest.approx(2 / 3)
    # `compare` reads the same from the table.
    own = told_kinds(got.table)
    assert [own[kind]["pixel_aupimo"] for kind in ("dent", "scratch")] == [0.5, 1.0]


def test_scores_that_tell_nothing_apart_are_told():
    saturated = np.array([1.0, 1.0, 1.0, 0.5], np.float32)
    (said,) = ties("ms_flow", "image", saturated)
    assert said.startswith("ms_flow: 3 of 4 test images have the same score, 1:")
    assert ties("ms_flow", "image", saturated[:3]) == []
    assert ties("ms_flow", "image", np.linspace(0, 1, 9)) == []
