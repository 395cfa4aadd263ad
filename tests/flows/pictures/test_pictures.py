"""Pictures: right in what they say, whole for awkward input, and free of shared state."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flows.pictures import charts as figures
from flows.pictures.maps import Cell, map_sheet, outcome, prediction_overlay
from flows.pictures.panels import (
    boxes_over,
    contour_over,
    fit,
    heat_over,
    heat_scale,
    truth_picture,
)
from headwater.errors import DataError
from headwater.samples import IMAGE, PAIR

RNG = np.random.default_rng(0)


def cell(kind=IMAGE, height=48, width=64, **more):
    # Of a pair the map is a panel of its own, at the images' size.
    mapped = (height, width) if kind.paired else (32, 32)
    mask = np.zeros(mapped, bool)
    mask[8:14, 10:20] = True
    heat = RNG.random(mapped).astype(np.float32)
    shape = (height, width, 3)
    images = tuple(RNG.integers(0, 255, shape, dtype=np.uint8) for _ in kind.images)
    whole = Cell(images, heat, "crack/a_rather_long_name_of_an_image_0001", "missed, 1.5", mask)
    return replace(whole, **more)


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def ink(path):
    """Share of the picture that is not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


@pytest.mark.parametrize("kind", [IMAGE, PAIR])
@pytest.mark.parametrize("count", [1, 3, 4, 13, 24])
def test_sheets_of_any_number_of_samples_of_any_shape(tmp_path, kind, count):
    shapes = [(48, 64), (90, 30), (8, 200), (300, 300)]
    cells = [
        cell(
            kind,
            *shapes[k % 4],
            mistaken=(None, True, False)[k % 3],
            **({"mask": None} if k % 3 else {}),
        )
        for k in range(count)
    ]
    target = tmp_path / "new" / "sheet.png"
    path = map_sheet(kind, cells, target, "tiles", threshold=1.0, cut=0.5)
    assert size(path)[0] < 2400
    assert ink(path) > 0.2
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("kind", [IMAGE, PAIR])
def test_a_sheet_of_nothing_is_an_error(tmp_path, kind):
    for cells in ([], [cell(kind)] * 25):
        with pytest.raises(DataError, match=f"{kind.name}s\n  expected: 1 to 24"):
            map_sheet(kind, cells, tmp_path / "sheet.png", "t", threshold=1.0, cut=1.0)


@pytest.mark.parametrize(
    ("defective", "flagged", "said"),
    [
        (True, True, "found"),
        (True, False, "missed"),
        (False, True, "false alarm"),
        (False, False, "passed"),
        (None, True, "anomalous"),
        (None, False, "normal"),
    ],
)
def test_what_a_caption_says(defective, flagged, said):
    assert outcome(flagged, defective) == said


def test_a_mask_shows_what_was_found_missed_and_falsely_called():
    called, mask = np.zeros((2, 8, 8), bool)
    called[:4], mask[2:6] = True, True
    shown = truth_picture(called, mask, 16)
    white, orange, blue = (shown[y, 3].tolist() for y in (5, 9, 1))
    assert white == [255, 255, 255]
    assert orange[0] > orange[2]
    assert blue[2] > blue[0]
    assert truth_picture(called, None, 16).std() == 0


def test_colour_is_where_the_map_is_above_the_threshold():
    image = np.full((64, 64, 3), 90, np.uint8)
    heat = np.zeros((32, 32), np.float32)
    heat[8:16, 16:24] = 5.0
    scale = heat_scale([heat], pixel_threshold=2.0)
    drawn = heat_over(image, heat, scale).astype(int)
    coloured = np.abs(drawn[..., 0] - drawn[..., 2]) > 10
    assert coloured[18:30, 34:46].all()
    assert not coloured[40:].any()
    # a normal image stays grey, whatever its own largest value
    calm = RNG.random((32, 32)).astype(np.float32)
    grey = heat_over(image, calm, heat_scale([calm], pixel_threshold=2.0))
    assert np.ptp(grey, axis=2).max() == 0


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_maps_without_contrast_have_a_scale(value):
    low, high = heat_scale([np.full((8, 8), value)])
    assert high > low


def test_outlines_go_around_the_defect():
    mask = np.zeros((50, 50), bool)
    mask[20:30, 20:30] = True
    image = np.full((100, 100, 3), 120, np.uint8)
    drawn = contour_over(image, mask)
    changed = (drawn != image).any(2)
    assert changed.any()
    assert not changed[40:60, 40:60].any()
    assert (image == 120).all()


def test_boxes_go_around_what_they_hold_and_stay_in_the_picture():
    image = np.full((60, 80, 3), 120, np.uint8)
    drawn = boxes_over(image, [(20, 30, 40, 50), (-3, -3, 9, 200), (59.5, 79.5, 60, 80)])
    changed = (drawn != image).any(2)
    assert not changed[20:40, 30:50].any()
    assert changed[17:43, 27:53].sum() == 26**2 - 20**2
    assert not changed[12:17].any()
    assert (image == 120).all()


def test_fitting_keeps_proportions():
    assert fit(np.zeros((100, 50, 3), np.uint8), 200).shape == (200, 100, 3)
    assert fit(np.zeros((1, 900, 3), np.uint8), 200).shape == (1, 200, 3)


def test_curves_and_histogram(tmp_path):
    scores, labels = RNG.normal(size=60), np.arange(60) % 2 == 0
    assert ink(figures.curves(scores, labels, 0.0, tmp_path / "a.png")) > 0.05
    figures.curves([0.0, 1.0], [False, True], 99.0, tmp_path / "b.png")  # nothing is flagged
    with pytest.raises(DataError, match="both classes"):
        figures.curves(scores, np.zeros(60), 0.0, tmp_path / "c.png")
    far = np.append(scores, 1e6)  # one outlier must not flatten the rest
    wide = figures.score_histogram(scores, far, np.append(labels, True), 0.5, tmp_path / "d.png")
    assert ink(wide) > 0.08
    figures.score_histogram([1.0], [], [], 1.0, tmp_path / "e.png")
    with pytest.raises(DataError):
        figures.score_histogram([], [], [], 1.0, tmp_path / "f.png")


def test_drift(tmp_path):
    moved, limits = {"layer1": 0.5, "layer2": 2.0}, {"layer2": 1.0}
    figures.drift(moved, limits, [1, 2, 3], [], tmp_path / "c.png", "t")
    assert ink(tmp_path / "c.png") > 0.05


@pytest.mark.parametrize("kind", [IMAGE, PAIR])
@pytest.mark.parametrize("cut", [None, 0.5])
def test_a_prediction_says_what_the_model_says(tmp_path, kind, cut):
    one = cell(kind, 900, 40)
    drawn = {
        verdict: np.asarray(
            Image.open(
                prediction_overlay(
                    kind, one.images, one.heat, verdict, "", tmp_path / "d.png", cut=cut
                )
            ).convert("RGB")
        )
        for verdict in kind.verdicts
    }
    calm, alarm = (drawn[v][20, 15].astype(int) for v in kind.verdicts)
    assert calm[1] > calm[0]  # green
    assert alarm[0] > alarm[1]  # vermilion
    assert len(drawn[kind.verdicts[0]]) < 800


def test_threads_draw_the_same_pictures(tmp_path):
    cells = [cell() for _ in range(3)]
    alone = map_sheet(
        IMAGE, cells, tmp_path / "alone.png", "t", threshold=1.0, cut=1.0
    ).read_bytes()

    def draw(k):
        map_sheet(IMAGE, cells, tmp_path / f"{k}.png", "t", threshold=1.0, cut=1.0)

    threads = [threading.Thread(target=draw, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all((tmp_path / f"{k}.png").read_bytes() == alone for k in range(3))
