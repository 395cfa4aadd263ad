"""Large images in tiles, from files to verdicts: found small, judged as a whole."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from benchmarks.tiles import make_images
from features.images.masks import read_mask
from features.images.pixels import read_image
from flows.door.detector import load
from flows.door.home import open_home
from flows.extraction.extract import extract_set
from flows.extraction.plan import plan_job, ready
from flows.extraction.regions import regions_of
from flows.runtime.home import Home
from flows.runtime.settings import BackboneSettings
from flows.training.data import TrainingData
from flows.training.evaluation import judge
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.bundle import bundle
from flows.use.predict import open_model, predict
from heads.catalogue import get_head
from heads.contract import NullProgress, TrainOptions
from headwater.errors import ConfigError
from headwater.spec import TileSpec
from headwater.tiles import parts
from storage.serving.detector import Detector
from storage.serving.encoding import decode_map, encode_image
from storage.serving.pyfunc import ServedModel
from storage.upkeep.contents import inspect
from tests.flows.setkit import QUIET, SmallSet, make_pairs, pair_settings, save

SHAPE, TILE, OVERLAP = (96, 144), 48, 16
COUNT = len(parts(*SHAPE, TileSpec(TILE, OVERLAP)))  # 3 rows of 4
SIDE = 6  # of a defect, pixels


def draw(small, part, number, shape=SHAPE):
    """Make an image of noise; of a defect with a small bright square, and its mask."""
    rng = np.random.default_rng(number)
    pixels, mask = rng.integers(90, 110, (*shape, 3), dtype=np.uint8), np.zeros(shape, np.uint8)
    if not part.endswith("good"):
        top, left = (int(rng.integers(4, side - SIDE - 4)) for side in shape)
        mask[top : top + SIDE, left : left + SIDE] = 255
        pixels[mask > 0] = 220
        save(mask, small.images / f"ground_truth/x/{number}_mask.png")
    save(pixels, small.images / part / f"{number}.png")


def made(folder, **extraction):
    small = SmallSet(folder)
    small.extraction = {"batch": 5, "precision": "float32", **extraction}
    for part, numbers in (("train/good", range(9)), ("test/good", range(20, 24)),
                          ("test/x", range(30, 34))):  # fmt: skip
        for number in numbers:
            draw(small, part, number)
    return small


def extracted(small, seed=3):
    """Extract a set; return the report and the training that follows."""
    report = small.run(seed)
    settings = ready(small.settings(), small.home, images=False)
    request = Request(settings, small.home, plan_job(settings, small.home, seed), report.version)
    plan = request.plan.seeing(**report.seen)
    (training,) = dataclasses.replace(request, plan=plan).trainings(report.version)
    return report, training


def judged(training):
    """Train as `train_head` does, without MLflow; return what evaluation gave, and the model."""
    data, plan = TrainingData(training), training.plan
    train, held = data.sources()
    head = get_head(plan.head)(plan.make_config(), train.shapes, plan.spec.input_size)
    head.fit(train, held, TrainOptions(device="cpu", precision="float32"), NullProgress())
    found, whole = judge(data, head.eval(), held), regions_of(plan.spec, training.home).whole
    region = None if whole is None else read_mask(whole)
    backbone, at = training.backbone.load(), found.calibration
    return found, Detector(backbone, head, plan.spec, plan.layers, at, region=region)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory, empty_database):
    small = made(tmp_path_factory.mktemp("tiled"), tile=TILE, overlap=OVERLAP)
    shutil.copy(empty_database, small.home.root / "mlflow.db")
    report, training = extracted(small)
    return small, report, training, train_head(training)


def test_tiles_are_rows_that_know_their_place(tiled):
    small, report, training, _ = tiled
    assert (report.computed, small.run().computed) == (17 * COUNT, 0)
    assert any(f"{17 * COUNT} tiles of 48 pixels, neighbours share 16: 12 an" in n
               for n in report.notes)  # fmt: skip
    (extractor,) = small.store.extractors()
    assert extractor.spec.tiles == TileSpec(TILE, OVERLAP)
    assert extractor.spec.input_size == (TILE, TILE)  # no size was given: the tile's own
    reader = small.store.reader(extractor.spec, tuple(extractor.layers.values()))
    assert sorted(reader.views) == sorted([*range(1, COUNT + 1)] * 17)
    assert inspect(small.store)["extractors"][0]["layers"][0]["coverage"] == 1
    assert small.home.card("s")["extraction"]["tile"] == TILE
    train, held = TrainingData(training).sources()
    assert set(train.views) == set(held.views) == {0}  # to a head each tile is an image
    assert not set(train.ids) & set(held.ids)  # all tiles of an image on one side
    assert len(set(held.ids)) == 2
    assert len(held) == 2 * COUNT
    assert held.parts == [*range(1, COUNT + 1)] * 2


def test_a_small_defect_is_found_by_the_joined_map(tiled, tmp_path):
    *_, outcome = tiled
    assert outcome.metrics["image_auroc"] == 1
    assert outcome.metrics["pixel_auroc"] > 0.97
    whole = made(tmp_path, size=TILE)
    other, _ = judged(extracted(whole)[1])
    assert outcome.metrics["aupro"] > other.metrics["aupro"] + 0.1


def test_predictions_are_those_of_evaluation_and_lie_over_the_whole_image(tiled):
    small, *_ = tiled
    (file,) = small.home.root.rglob("tables/images.json")
    table = {row["path"]: row["score"] for row in json.loads(file.read_text())}
    rows = predict(small.home, "s", QUIET, images=[small.images / "test"])
    assert len(rows) == 8
    for row in rows:
        assert row["score"] == table[row["image"].removeprefix(f"{small.images}/")]
    detector, _ = open_model(small.home, "s", None, None, device="cpu")
    image = read_image(small.images / "test/x/30.png")
    (one,), (other, _) = (detector.predict(x, batch=b) for x, b in (([image], 1), ([image] * 2, 7)))
    assert one.map.shape == SHAPE
    assert one.looked is None
    assert one.score == other.score == one.map.max()
    assert (one.map == other.map).all()
    mask = read_image(small.images / "ground_truth/x/30_mask.png")[..., 0] > 0
    at = np.unravel_index(one.map.argmax(), SHAPE)
    assert min(abs(np.argwhere(mask) - at).max(1)) <= 2
    # Of an image that is smaller than a tile there is one.
    (small_one,) = detector.predict([image[:30, :40]])
    assert small_one.map.shape == (30, 40)


def test_every_way_to_ask_a_model_takes_whole_images(tiled, tmp_path):
    small, *_ = tiled
    path = small.images / "test/x/30.png"
    (row,) = predict(small.home, "s", QUIET, images=[path])
    opened = open_home(small.home.root, quiet=True).detector("s", device="cpu")
    result = opened.predict(path)
    assert (result.score, result.map.shape) == (row["score"], SHAPE)
    assert max(result.image().size) > 0
    served, table = ServedModel(), pd.DataFrame({"image": [encode_image(read_image(path))]})
    served.detector = opened.inference
    (answer,) = served.predict(None, table, {"map": "npy"}).to_dict("records")
    assert answer["score"] == row["score"]
    assert (decode_map(answer) == result.map).all()
    bundle(small.home, "s", tmp_path / "s.zip")
    other = load(tmp_path / "s.zip", device="cpu").predict(path)
    assert (other.score, other.threshold) == (result.score, result.threshold)
    assert (other.map == result.map).all()


def test_an_image_that_lacks_a_tile_waits(tiled):
    _, _, training, _ = tiled
    data = TrainingData(training)
    have = data.sides[0]
    rows = [row for row in range(len(have)) if not (have.ids[row] == have.ids[0] and
                                                    have.parts[row] == 5)]  # fmt: skip
    data.__dict__["sides"] = [have.subset(rows)]
    assert len(data.readable) == 16
    assert data.lacking == [s.key for s in data.all if s.contents[0] == have.ids[0]]


def test_outside_of_a_region_no_tile_is_seen_and_nothing_counts(tmp_path):
    inside = np.zeros(SHAPE, bool)
    inside[:40, :70] = True
    save(inside, tmp_path / "roi.png")
    small = made(tmp_path, tile=TILE, overlap=OVERLAP, roi=str(tmp_path / "roi.png"))
    report, training = extracted(small)
    assert report.computed == 17 * 6  # of 3 rows of 4 tiles, the first two of 3
    assert small.run().computed == 0
    found, detector = judged(training)
    assert all((~heat.mask == inside).all() for heat in found.maps)
    rng = np.random.default_rng(0)
    clean = rng.integers(90, 110, (*SHAPE, 3), dtype=np.uint8)
    wild = np.where(inside[..., None], clean, rng.integers(0, 255, clean.shape)).astype(np.uint8)
    one, two = detector.predict([clean, wild])
    assert one.score == two.score
    assert (one.map == two.map).all()
    assert (one.looked == inside).all()
    assert (one.map[~inside] == one.map.min()).all()


def test_the_whole_is_joined_in_where_both_scales_are_seen(tmp_path):
    small = made(tmp_path, tile=TILE, overlap=OVERLAP, scale="both", resize="fit")
    report, training = extracted(small)
    assert report.computed == 17 * (COUNT + 1)
    found, detector = judged(training)
    assert found.metrics["image_auroc"] == 1
    assert all(deviation > 0 for _, deviation in found.calibration.standard)
    detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model", device="cpu")
    images = [read_image(sample.paths[0]) for sample in found.samples]
    for got, score, heat in zip(loaded.predict(images), found.scores, found.maps, strict=True):
        assert got.score == score
        assert (got.map == heat).all()


def test_views_of_tiles_train_a_head_that_asks_for_them(tmp_path):
    small = made(tmp_path, tile=TILE, overlap=0)
    learnt = {"factorize": "always", "steps": 2, "epochs": 1}
    small.heads = {"f2r": {"views": 2, "ratio": 0.05, "nodes": ["layer1"], **learnt}}
    report, training = extracted(small)
    assert [x.wanted for x in report.extracted] == [17 * 6, 9 * 6 * 2]
    train, _ = TrainingData(training).sources()
    assert sorted(set(train.views)) == [0, 1, 2]
    assert train.views.count(1) == train.views.count(0)
    assert judged(training)[0].metrics["image_auroc"] > 0.9


def test_pairs_are_not_cut(tmp_path):
    make_pairs(tmp_path / "boards", "train", range(4), ())
    settings = pair_settings(tmp_path, extraction={"tile": 48})
    with pytest.raises(ConfigError, match="--tile with pair_diff: pairs are not cut into tiles"):
        extract_set(settings, Home.at(tmp_path / "home"), QUIET, untrained_seed=3)


@pytest.mark.slow
def test_a_defect_of_20_pixels_in_an_image_of_4096_is_found(tmp_path):
    small = SmallSet(tmp_path)
    make_images(small.images, "gravel", 4096, 20, [5, 2, 2])
    small.heads = {"patchcore": {"ratio": 0.1, "limit": 4000}}
    found = {}
    for name, how in (("tiles", {"tile": 1024, "size": 512}), ("whole", {"tile": 0, "size": 512})):
        small.extraction = {"precision": "float32", "batch": 8, **how}
        settings = small.settings().model_copy(update={"backbone": BackboneSettings()})
        report = extract_set(settings, small.home, QUIET)
        ready_ = ready(settings, small.home, images=False)
        plan = plan_job(ready_, small.home).seeing(**report.seen)
        (training,) = Request(ready_, small.home, plan).trainings(report.version)
        found[name], _ = judged(training)
    tiles, whole = found["tiles"], found["whole"]
    assert tiles.maps[0].shape == (1024, 1024)
    assert tiles.metrics["aupro"] > max(0.85, whole.metrics["aupro"] + 0.3)
    for heat, mask in zip(tiles.maps, tiles.masks, strict=True):
        if mask is not None and mask.any():
            # Few places of the image stand out as much.
            assert (heat > heat[mask].max()).mean() < 1e-3


@pytest.mark.parametrize(
    ("heads", "extraction", "said"),
    [
        ({"padim": {}}, {"tile": 48}, "--tile with padim, which learns what is normal at each"),
        ({"patchcore": {}}, {"overlap": 8}, "--overlap 8 without tiles"),
        ({"patchcore": {}}, {"tile": 48, "overlap": 48}, "--tile 48 --overlap 48"),
        ({"patchcore": {}}, {"tile": 48, "crop": 32}, "--tile 48 with a crop"),
        ({"patchcore": {}}, {"tile": 48, "resize": "crop"}, "--tile 48 with a crop"),
    ],
)
def test_what_tiles_cannot_do_is_refused_before_anything_is_made(tmp_path, heads, extraction, said):
    small = SmallSet(tmp_path)
    draw(small, "train/good", 1)
    small.heads, small.extraction = heads, extraction
    with pytest.raises(ConfigError, match=said):
        small.run()
    assert not small.home.root.exists() or not any(small.home.root.rglob("store/*"))


def test_tiles_are_taken_back_by_tile_0(tmp_path):
    small = SmallSet(tmp_path)
    for number in range(4):
        draw(small, "train/good", number)
    small.extraction = {"tile": 48, "overlap": 8, "precision": "float32"}
    assert small.run().computed > 4
    small.extraction = {"tile": 0, "size": 48, "precision": "float32"}
    assert small.run().computed == 4
    card = small.home.card("s")["extraction"]
    assert (card["tile"], card["overlap"], card["scale"]) == (None, None, "tiles")
