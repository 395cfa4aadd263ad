"""Pictures: right in what they say, whole for awkward input, and free of shared state."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flows.pictures import charts as figures
from flows.pictures.maps import contour_over, fit, heat_over
from headwater.errors import DataError

RNG = np.random.default_rng(0)
ROWS = [
    {"head": "patchcore", "version": "1", "metrics": {"image_auroc": 0.9, "aupro": 0.8}},
    {"head": "cs_flow", "version": "2", "metrics": {"image_auroc": 0.95}},
    {"head": "f2r", "version": "1", "metrics": {}},
]


def cell(height=48, width=64, **more):
    mask = np.zeros((24, 32), bool)
    mask[8:14, 10:20] = True
    heat = RNG.random((32, 32)).astype(np.float32)
    image = RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)
    whole = figures.Cell(image, heat, "crack/a_rather_long_name_of_an_image_0001", 1.5, mask, True)
    return replace(whole, **more)


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def ink(path):
    """Share of the picture that is not white."""
    return float((np.asarray(Image.open(path).convert("L")) < 250).mean())


@pytest.mark.parametrize("count", [1, 3, 4, 13, 24])
def test_sheets_of_any_number_of_images_of_any_shape(tmp_path, count):
    shapes = [(48, 64), (90, 30), (8, 200), (300, 300)]
    cells = [cell(*shapes[k % 4], mask=None if k % 3 else cell().mask) for k in range(count)]
    path = figures.heat_map_sheet(cells, 1.0, tmp_path / "new" / "sheet.png", "tiles")
    assert size(path)[0] < 2400
    assert ink(path) > 0.2
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_sheet_of_nothing_is_an_error(tmp_path):
    for cells in ([], [cell()] * 25):
        with pytest.raises(DataError, match="1 to 24"):
            figures.heat_map_sheet(cells, 1.0, tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("defective", "flagged", "verdict", "mistaken"),
    [
        (True, True, "found", False),
        (True, False, "missed", True),
        (False, True, "false alarm", True),
        (False, False, "passed", False),
        (None, True, "anomalous", False),
        (None, False, "normal", False),
    ],
)
def test_what_a_caption_says(defective, flagged, verdict, mistaken):
    one = cell(defective=defective, flagged=flagged)
    assert (one.verdict, one.mistaken) == (verdict, mistaken)


def test_colour_is_where_the_map_is_above_the_threshold():
    image = np.full((64, 64, 3), 90, np.uint8)
    heat = np.zeros((32, 32), np.float32)
    heat[8:16, 16:24] = 5.0
    scale = figures.heat_scale([heat], pixel_threshold=2.0)
    drawn = heat_over(image, heat, scale).astype(int)
    coloured = np.abs(drawn[..., 0] - drawn[..., 2]) > 10
    assert coloured[18:30, 34:46].all()
    assert not coloured[40:].any()
    # a normal image stays grey, whatever its own largest value
    calm = RNG.random((32, 32)).astype(np.float32)
    grey = heat_over(image, calm, figures.heat_scale([calm], pixel_threshold=2.0))
    assert np.ptp(grey, axis=2).max() == 0


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_maps_without_contrast_have_a_scale(value):
    low, high = figures.heat_scale([np.full((8, 8), value)])
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


def test_leaderboard_drift_prediction_overview(tmp_path):
    assert size(figures.leaderboard(ROWS, tmp_path / "a.png", "x"))[1] > 200
    with pytest.raises(DataError):
        figures.leaderboard([], tmp_path / "b.png")
    figures.drift(
        {"layer1": 0.5, "layer2": 2.0}, {"layer2": 1.0}, [1, 2, 3], [], tmp_path / "c.png"
    )
    one = cell(900, 40)
    shown = figures.prediction_overlay(
        one.image, one.heat, 2.0, "anomalous", 1.0, tmp_path / "d.png"
    )
    assert size(shown)[1] < 800
    figures.overview([cell(), cell(30, 90)], ROWS, tmp_path / "e.png", "demo", "a note")
    with pytest.raises(DataError):
        figures.overview([], ROWS, tmp_path / "f.png")


def test_threads_draw_the_same_pictures(tmp_path):
    cells = [cell() for _ in range(3)]
    alone = figures.heat_map_sheet(cells, 1.0, tmp_path / "alone.png", "t").read_bytes()

    def draw(k):
        figures.heat_map_sheet(cells, 1.0, tmp_path / f"{k}.png", "t")

    threads = [threading.Thread(target=draw, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all((tmp_path / f"{k}.png").read_bytes() == alone for k in range(3))
