"""From images of all shapes to verdicts: what is not looked at counts nowhere."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from features.images.masks import read_mask
from flows.door.detector import LoadedModel
from flows.extraction import regions
from flows.extraction.find import Found
from flows.extraction.pair_list import PairList
from flows.extraction.plan import plan_job, ready
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.forecast import _shadow
from flows.use.predict import open_model, predict
from headwater.errors import ConfigError, DataError, ImageError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.encoding import encode_image
from storage.serving.pyfunc import ServedModel, signature_of
from tests.flows.setkit import QUIET, SmallSet, save


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
    rows = predict(small.home, "s", QUIET, images=[small.images / "test"])
    assert len(rows) == 4
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


def own_regions(small, numbers, left, place=lambda image: image.with_name(f"{image.stem}_roi.png")):
    """Let only one half of the images of these numbers be looked at: the left or the right one."""
    inside = np.zeros((48, 64), np.uint8)
    inside[:, slice(0, 32) if left else slice(32, 64)] = 255
    for image in sorted(small.images.glob("t*/*/*.png")):
        if image.stem.isdigit() and int(image.stem) in numbers:
            save(inside, place(image))


@pytest.mark.slow
def test_every_image_may_have_a_region_beside_it(small):
    filled(small, lambda n: (48, 64))
    draw(small, "test/y", 40, (48, 64))  # its defect is on the left, and the right is looked at
    own_regions(small, {*range(8), 20, 30, 31}, left=True)
    own_regions(small, {40}, left=False)
    small.extraction["roi"] = "beside"
    report = small.run()
    assert report.left_out == {"regions of interest beside images": 12}
    assert (report.computed, report.set_aside) == (14, [])
    assert "2 of 14 images have no region: all is looked at" in report.notes
    training = training_of(small, report.version)
    assert training.plan.spec.region.startswith("beside-")
    outcome = train_head(training)
    # A defect outside is none: image 40 counts as normal, and scores as one.
    assert any("1 test image(s) with nothing to be found inside" in n for n in outcome.notes)
    assert outcome.metrics["image_auroc"] == 1
    (file,) = small.home.root.rglob("tables/images.json")
    table = {row["path"]: row for row in json.loads(file.read_text())}
    assert table["test/y/40.png"]["score"] < table["test/x/30.png"]["score"]
    # What predicts takes them too, and scores as was judged.
    rows = predict(small.home, "s", QUIET, images=[small.images / "test"])
    assert not any(row["error"] for row in rows)
    for row in rows:
        assert row["score"] == table[row["image"].removeprefix(f"{small.images}/")]["score"]
    # A whole picture shows the defect; a region that is given hides it.
    image = small.images / "test/y/40.png"
    alone = small.folder / "alone.png"
    alone.write_bytes(image.read_bytes())
    (seen,) = predict(small.home, "s", QUIET, images=[alone])
    hiding = image.with_name("40_roi.png")
    (hidden,) = predict(small.home, "s", QUIET, images=[alone], roi=hiding)
    assert (seen["verdict"], hidden["score"]) == ("anomalous", table["test/y/40.png"]["score"])
    # So does the front door, by the file beside a picture's file or what it is given;
    opened = LoadedModel(open_model(small.home, "s", None, None, device="cpu")[0], "s", "1")
    score, picture = hidden["score"], Image.open(image)
    for got in (
        opened.predict(image),
        opened.predict(picture, roi=hiding),
        opened.predict(np.asarray(picture), roi=np.asarray(Image.open(hiding))),
    ):
        assert (got.score, got.note) == (score, "")
    got = opened.predict(picture)
    assert (got.score, "all of it was looked at" in got.note) == (seen["score"], True)
    # and what MLflow serves, by a column.
    served, text = ServedModel(), encode_image(np.asarray(picture))
    served.detector = opened.inference
    assert "roi" in signature_of(opened.inference).inputs.input_names()
    table = pd.DataFrame({"image": [text] * 2, "roi": [encode_image(read_mask(hiding)), None]})
    one, two = served.predict(None, table).to_dict("records")
    assert (one["score"], one["note"], two["score"]) == (score, "", seen["score"])
    assert "all of it was looked at" in two["note"]
    (plain,) = served.predict(None, table[["image"]][:1]).to_dict("records")
    assert plain["score"] == seen["score"]
    # Outside nothing counts: what is drawn there changes no bit.
    pixels = np.asarray(Image.open(image)).copy()
    pixels[:, :32] = np.random.default_rng(5).integers(0, 255, (48, 32, 3))
    save(pixels, alone)
    (other,) = predict(small.home, "s", QUIET, images=[alone], roi=hiding)
    assert other["score"] == hidden["score"]
    with pytest.raises(ConfigError, match=r"--roi .*gone\.png"):
        predict(small.home, "s", QUIET, images=[alone], roi=small.folder / "gone.png")


def test_regions_of_images_that_arrive_and_of_images_that_change(small):
    filled(small, lambda n: (48, 64))
    own_regions(small, {0}, left=True)
    small.extraction["roi"] = "beside"
    first = small.run()
    before = small.home.card("s")["extraction"]["roi"]
    # The set remembers that images have their own, and looks for those that arrive.
    del small.extraction["roi"]
    draw(small, "train/good", 12, (48, 64))
    own_regions(small, {12}, left=False)
    assert small.run().computed == 1
    assert small.home.card("s")["extraction"]["roi"] == before
    # A forecast, which works beside the home, knows them as well.
    found = Found(small.images, {"s": small.store.table().images()})
    with _shadow(small.home, "s") as other:
        assert regions.own_regions(Path(before), found, other, "s").id == before
    # Another region is another extractor: nothing made with the old one is taken for it.
    own_regions(small, {0}, left=False)
    again = small.run()
    assert again.computed == first.computed + 1
    assert small.home.card("s")["extraction"]["roi"] != before
    save(np.zeros((48, 64), np.uint8), small.images / "train/good/1_roi.png")
    with pytest.raises(DataError, match=r"1_roi\.png is black"):
        small.run()
    save(np.full((64, 48), 255, np.uint8), small.images / "train/good/1_roi.png")
    with pytest.raises(DataError, match=r"1_roi\.png has 64x48 pixels and the image 48x64"):
        small.run()


def test_regions_may_lie_in_a_folder_of_their_own(small):
    filled(small, lambda n: (48, 64))
    folder = small.folder / "roi"
    small.extraction["roi"] = str(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="no image of the set has a region of interest"):
        small.run()
    own_regions(small, {0, 30}, True, lambda p: folder / p.relative_to(small.images))
    report = small.run()
    assert f"{report.computed - 2} of {report.computed} images have no region" in " ".join(
        report.notes
    )
    del small.extraction["roi"]
    own_regions(small, {31}, True, lambda p: folder / p.relative_to(small.images))
    assert small.run().computed == report.computed  # 31 had none before
    small.extraction["roi"] = str(small.images / "train")
    with pytest.raises(DataError, match="outside of the images' folder"):
        small.run()


def test_a_set_of_pairs_takes_one_region_for_all(small):
    found = Found(small.images, {}, pairs=PairList(small.images, ()))
    with pytest.raises(ConfigError, match="--roi beside of pairs"):
        regions.own_regions(Path("beside"), found, small.home, "s")
