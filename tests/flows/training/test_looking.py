"""From images of all shapes to verdicts: what is not looked at counts nowhere."""

import json

import numpy as np
import pytest
from PIL import Image

from flows.extraction.plan import plan_job, ready
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.predict import predict
from headwater.errors import DataError, ImageError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from tests.flows.setkit import QUIET, SmallSet


@pytest.fixture
def small(tmp_path):
    """A set to be drawn."""
    return SmallSet(tmp_path)


def draw(small, part, number, shape, defect=10):
    """Make a grey image; of a kind of defect with a bright square from row `defect` on."""
    pixels = np.random.default_rng(number).integers(90, 110, (*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, np.uint8)
    if not part.endswith("good"):
        mask[defect : defect + 10, 10:22] = 255
        pixels[mask > 0] = 250
        save(mask, small.images / f"ground_truth/{part.removeprefix('test/')}/{number}_mask.png")
    save(pixels, small.images / part / f"{number}.png")


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def filled(small, shape_of):
    for part, numbers in (("train/good", range(9)), ("test/good", (20, 21)), ("test/x", (30, 31))):
        for number in numbers:
            draw(small, part, number, shape_of(number))


def training_of(small, at):
    settings = ready(small.settings(), small.home, images=False)
    return Request(settings, small.home, plan_job(settings, small.home, 3), at).trainings(at)[0]


def test_images_of_several_shapes_are_fitted_and_predicted_as_they_were_judged(small):
    filled(small, lambda n: (40, 64) if n % 2 else (64, 48))
    asked, small.extraction = small.extraction, {**small.extraction, "resize": "fit"}
    report = small.run()
    assert small.home.card("s")["extraction"]["resize"] == "fit"
    small.extraction = asked
    assert small.run().computed == 0  # remembered
    outcome = train_head(training_of(small, report.version))
    assert outcome.metrics["image_auroc"] == 1
    assert outcome.metrics["pixel_auroc"] > 0.93
    registry = Registry(small.home.root)
    detector = Detector.load(registry.get_model("s", "patchcore")["uri"], registry, "cpu")
    (file,) = small.home.root.rglob("tables/images.json")
    table = {row["path"]: row["score"] for row in json.loads(file.read_text())}
    rows, broken = predict(small.home, "s", QUIET, images=[small.images / "test"])
    assert (len(rows), broken) == (4, [])
    for row in rows:
        assert row["score"] == table[row["image"].removeprefix(f"{small.images}/")]
    (got,) = detector.predict([np.zeros((40, 64, 3), np.uint8)])
    assert (got.map.shape, got.looked) == ((30, 48), None)


def region(small, shape=(48, 64)):
    """Make a region that holds the upper half, and give it to the set."""
    inside = np.zeros(shape, bool)
    inside[: shape[0] // 2] = True
    path = small.folder / "roi.png"
    Image.fromarray(inside).save(path)
    small.extraction["roi"] = str(path)
    return inside


def test_what_lies_outside_of_a_region_of_interest_changes_nothing(small):
    inside = region(small)
    small.extraction["resize"] = "fit"
    filled(small, lambda n: (48, 64))
    draw(small, "test/y", 40, (48, 64), defect=30)  # below the region
    report = small.run()
    training = training_of(small, report.version)
    outcome = train_head(training)
    # The defect that lies outside is none.
    assert any("1 test image(s) with nothing to be found inside" in n for n in outcome.notes)
    assert outcome.metrics["image_auroc"] == 1
    assert outcome.metrics["pixel_auroc"] > 0.93
    registry = Registry(small.home.root)
    detector = Detector.load(registry.get_model("s", "patchcore")["uri"], registry, "cpu")
    rng = np.random.default_rng(0)
    clean = rng.integers(90, 110, (48, 64, 3), dtype=np.uint8)
    clean[5:15, 30:40] = 250
    wild = np.where(inside[..., None], clean, rng.integers(0, 255, clean.shape)).astype(np.uint8)
    one, two = detector.predict([clean, wild])
    assert one.score == two.score
    assert (one.map == two.map).all()
    assert one.map.shape == (36, 48)  # 48 pixels wide, in the image's own aspect
    assert one.looked is not None
    assert one.looked[:18].all()
    assert not one.looked[18:].any()
    assert (one.map[18:] == one.map.min()).all()
    assert one.verdict == "anomalous"
    with pytest.raises(ImageError, match="48x64 pixels and the image 64x48"):
        detector.predict([clean.transpose(1, 0, 2).copy()])
    # The set remembers the region, not the file.
    (small.folder / "roi.png").unlink()
    del small.extraction["roi"]
    assert small.run().computed == 0
    assert training_of(small, report.version).plan.spec.region == training.plan.spec.region != ""
    (kept,) = (small.home.root / "regions").iterdir()
    kept.write_bytes(b"other")
    with pytest.raises(DataError, match="region of interest is missing or was changed"):
        small.run()
    small.extraction["roi"] = "none"
    assert small.run().computed == 14
    assert small.home.card("s")["extraction"]["roi"] is None


def test_a_region_that_does_not_fit_the_set_is_refused(small):
    region(small, (40, 40))
    filled(small, lambda n: (48, 64))
    with pytest.raises(DataError, match=r"roi\.png for .* has 40x40 pixels and the image 48x64"):
        small.run()
    small.extraction["roi"] = str(small.folder / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        small.run()
