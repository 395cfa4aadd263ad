"""Known defects choose thresholds and rules, are in no training and no test, and that is kept."""

import numpy as np
import pytest
from PIL import Image

from flows.extraction.plan import ready
from flows.training.data import TrainingData
from flows.training.train import train_head
from flows.use.models.lineage import lineage, whether_in
from flows.use.models.reproduce import reproduce
from heads.judging.metrics import auroc
from heads.judging.rules import ChosenRule
from headwater.errors import ConfigError, DataError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from tests.flows.setkit import QUIET, SmallSet
from tests.flows.training.test_train import artifact, training_of


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """12 normals, 2 good and 1 defective to test, 5 known defects, one of them with a mask."""
    made = SmallSet(tmp_path_factory.mktemp("set"))
    parts = (("train/good", range(12)), ("test/good", (20, 21)), ("test/x", (30,)))
    for part, numbers in (*parts, ("val/x", (40, 41)), ("val/y", (50, 51, 52))):
        for number in numbers:
            made.draw(number, part)
    mask = np.zeros((48, 48), np.uint8)
    mask[10:30, 10:30] = 255
    place = made.images / "val/ground_truth/y/50.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(mask).save(place)
    return made, made.run().version


def with_head(extracted, **config):
    small, _ = extracted
    small.heads = {"patchcore": config}


@pytest.fixture(autouse=True)
def plain_heads(extracted):
    yield
    with_head(extracted)


def scores_of(detector, small, part):
    """Scores of the images of a folder, by the model as it is registered."""
    files = sorted((small.images / part).glob("*.png"))
    return [p.score for p in detector.predict([np.asarray(Image.open(f)) for f in files])]


@pytest.mark.parametrize("calibrate", ["folds", "quick"])
def test_they_choose_the_threshold_and_the_rule_and_nothing_else_sees_them(extracted, calibrate):
    small, _ = extracted
    with_head(extracted, score="validation")
    training = training_of(extracted, calibrate=calibrate, target_recall=0.8)
    data = TrainingData(training)
    assert {s.kind for s in data.known} == {"x", "y"}
    val = {s.id for s in data.known}
    assert len(val) == 5
    assert not val & {s.id for s in (*data.learnt, *data.test)}
    sources = (data.normals(),) if calibrate == "folds" else data.sources()
    assert not any(val & set(source.ids) for source in sources)

    outcome = train_head(training)
    registry = Registry(small.home.root)
    detector = Detector.load(f"models:/s.patchcore/{outcome.version}", registry, "cpu")
    found = detector.calibration
    scores = scores_of(detector, small, "val/x") + scores_of(detector, small, "val/y")
    assert sum(s > found.threshold for s in scores) == 4  # ⌈0.8 · 5⌉
    above = sum(s > found.threshold for s in found.scores)
    assert found.known["false_alarms"] == above
    assert found.attained_fpr == pytest.approx((above + 1) / (found.n + 1))
    assert found.rule == "recall"

    samples = artifact(small.home, outcome.run_id, "tables/samples.json")
    roles = {s["sha256"]: s["role"] for s in samples}
    assert {sha for sha, role in roles.items() if role == "validation"} == val
    assert all(s["fold"] is None and s["calibration_score"] is None
               for s in samples if s["sha256"] in val)  # fmt: skip
    tested = artifact(small.home, outcome.run_id, "tables/images.json")
    assert not val & {row["sha256"] for row in tested}
    if calibrate == "folds":
        assert not val & artifact(small.home, outcome.run_id, "folds.json")["of"].keys()

    # The figures are those of the model as it is served, against the scores that it keeps.
    run = registry.client.get_run(outcome.run_id).data
    labels = np.arange(found.n + 5) >= found.n
    area = auroc([*found.scores, *scores], labels)
    assert run.metrics["val_image_auroc"] == outcome.metrics["val_image_auroc"]
    assert run.metrics["val_image_auroc"] == pytest.approx(area)
    assert run.metrics["val_image_recall"] == 0.8
    assert run.metrics["val_image_false_positive_rate"] == pytest.approx(above / found.n)
    assert run.metrics["val_images"] == 5
    assert 0 <= run.metrics["val_pixel_auroc"] <= 1

    rule = detector.head.rule
    assert isinstance(rule, ChosenRule)
    kept = artifact(small.home, outcome.run_id, "lineage.json")["validation"]
    areas = kept["chose"]["score"]["image_auroc"]
    assert kept["chose"]["score"]["rule"] == rule.CANDIDATES[int(rule.chosen)]
    assert areas[kept["chose"]["score"]["rule"]] == max(areas.values()) == pytest.approx(area)
    assert kept["chose"]["threshold"]["wanted"] == 0.8
    assert (kept["images"], kept["kinds"]) == (5, {"x": 2, "y": 3})
    assert detector.manifest["about"]["validation"] == kept
    asked = {"target_recall": "0.8", "validation_images": "5", "validation_digest": kept["digest"]}
    assert run.params.items() >= asked.items()
    assert run.params["score_chosen"] == kept["chose"]["score"]["rule"]
    assert any("chosen by 5 known defects, to find 80.0%" in note for note in outcome.notes)

    told = lineage(small.home, f"s.patchcore/{outcome.version}")
    assert told["validation"] == kept
    assert told["images"]["validation"] == 5
    assert whether_in(small.home, told, small.images / "val/x/40.png")[
        "learnt"
    ]  # the model was chosen by it
    assert not whether_in(small.home, told, small.images / "test/x/30.png")["learnt"]
    again = reproduce(small.home, f"s.patchcore/{outcome.version}", QUIET)
    assert (again.difference, again.verdicts, again.agree) == (0.0, 0, True)


def test_where_nothing_asks_them_they_are_measured_and_choose_nothing(extracted):
    small, _ = extracted
    plain = training_of(extracted)
    outcome = train_head(plain)
    kept = artifact(small.home, outcome.run_id, "lineage.json")["validation"]
    assert kept["chose"] == {}
    detector = Detector.load(f"models:/s.patchcore/{outcome.version}", Registry(small.home.root))
    assert detector.calibration.rule == "largest"
    assert detector.calibration.known is None
    assert outcome.metrics["val_images"] == 5
    told = lineage(small.home, f"s.patchcore/{outcome.version}")
    assert not whether_in(small.home, told, small.images / "val/x/40.png")["learnt"]
    # Another wish is another training; none is what it always was.
    keys = [
        TrainingData(training_of(extracted, **wish)).key()
        for wish in ({}, {"target_recall": 0.5}, {"costs": "3:1"})
    ]
    assert len(set(keys)) == 3
    assert keys[0] == TrainingData(plain).key()
    assert not {"target_recall", "costs"} & plain.options_json.keys()


def test_prices_choose_the_cheapest(extracted):
    small, _ = extracted
    outcome = train_head(training_of(extracted, costs="1000:1"))
    registry = Registry(small.home.root)
    found = Detector.load(f"models:/s.patchcore/{outcome.version}", registry).calibration
    assert found.rule == "costs"
    assert found.known["found"] == 5  # a miss costs more than all false alarms
    assert found.known["cost"] == pytest.approx(found.known["false_alarms"] / 17)
    params = registry.client.get_run(outcome.run_id).data.params
    assert params["costs"] == "1000:1"


def test_without_any_it_is_refused_before_anything_is_trained(small):
    at = small.run().version
    for options in ({"target_recall": 0.9}, {"costs": "1:1"}):
        training = training_of((small, at), **options)
        with pytest.raises(DataError, match="no known defects"):
            train_head(training)
    assert Registry(small.home.root).leaderboard("s") == []
    settings = ready(small.settings(), small.home, images=False)
    both = settings.training.model_copy(update={"target_recall": 0.9, "costs": "1:1"})
    with pytest.raises(ConfigError, match="one of them"):
        ready(settings.model_copy(update={"training": both}), small.home, images=False)
