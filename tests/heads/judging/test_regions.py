"""Regions of maps: the pieces that flooding finds, and few on normal images."""

import numpy as np
import pytest
from scipy import ndimage

from heads.judging.calibration import calibrate, calibrate_out_of_fold
from heads.judging.regions import largest, pieces


def flooded(above):
    """Return the pixels of each piece, by looking at neighbours one by one."""
    left, found = {tuple(p) for p in np.argwhere(above).tolist()}, []
    while left:
        edge = {left.pop()}
        piece = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge |= near
            piece |= near
        found.append(piece)
    return found


@pytest.mark.parametrize("hidden", [0, 0.3])
def test_pieces_are_what_flooding_finds(hidden):
    rng = np.random.default_rng(0)
    for share in (0.02, 0.2, 0.5, 0.9):
        heat = rng.random((23, 31)).astype(np.float32)
        mask = rng.random(heat.shape) < hidden
        cut = np.float32(1 - share)
        given = np.ma.masked_array(heat, mask) if hidden else heat
        got = pieces(given, cut, share=0)
        expected = {
            (min(ys), max(ys) + 1, min(xs), max(xs) + 1, len(piece))
            for piece in flooded((heat > cut) & ~mask)
            for ys, xs in [tuple(zip(*piece, strict=True))]
        }
        assert expected == {
            (p.rows.start, p.rows.stop, p.columns.start, p.columns.stop, p.area) for p in got
        }
        for p in got:
            assert heat[p.at] == np.float32(p.peak) > cut
            assert p.rows.start <= p.at[0] < p.rows.stop
        assert [p.area for p in got] == sorted((p.area for p in got), reverse=True)
        assert largest(given, cut) == got[0].area
        assert pieces(given, cut, 2, share=0) == [p for p in got if p.area > 2]
    assert pieces(heat, 2.0) == []


def told(heat, cut, larger, share):
    """Return the regions of all peaks as `pieces` defines them, by flooding from every pixel."""
    found = set()
    for part in flooded(heat > cut):
        if len(part) <= larger:
            continue
        above, claimed = np.zeros(heat.shape, bool), set()
        above[tuple(zip(*part, strict=True))] = True

        def about(p, value, above=above):
            level = np.float32(cut + share * (float(value) - cut))
            found = [r for r in flooded(above & (heat >= level)) if p in r]
            return found[0] if found else set()

        ranked = sorted(part, key=lambda p: -heat[p])
        for p in ranked:
            if p in claimed:
                continue
            region = about(p, heat[p])
            region = about(p, max(heat[q] for q in region))
            claimed |= region
            if region and (p == ranked[0] or len(region) > larger):
                found.add((p, frozenset(region)))
    return found


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_a_region_is_what_lies_about_its_peak(share):
    rng = np.random.default_rng(4)
    for larger in (0, 6):
        heat = ndimage.gaussian_filter(rng.random((17, 22)), 1.6).astype(np.float32)
        cut = float(np.quantile(heat, 0.5))
        expected = told(heat, cut, larger, share)
        got = pieces(heat, cut, larger, share)
        assert {(p.at, p.area) for p in got} == {(at, len(region)) for at, region in expected}
        for p in got:
            (region,) = (r for at, r in expected if at == p.at)
            ys, xs = zip(*region, strict=True)
            assert (p.rows, p.columns) == (
                slice(min(ys), max(ys) + 1),
                slice(min(xs), max(xs) + 1),
            )
        # Whichever the share, the same parts are told.
        assert len(pieces(heat, cut, larger, 0)) <= len(got)
        assert bool(got) == (largest(heat, cut) > larger)


def test_a_defect_on_a_slope_is_told_and_not_the_slope():
    slope = np.tile(np.linspace(0, 2, 60, dtype=np.float32), (40, 1))
    slope[10:16, 20:27] += 12
    slope[28:33, 44:50] += 9
    (whole,) = pieces(slope, 0.1, 20, share=0)
    assert whole.area > 0.9 * slope.size
    first, second = pieces(slope, 0.1, 20)
    assert (first.rows, first.columns) == (slice(10, 16), slice(20, 27))
    assert (second.rows, second.columns) == (slice(28, 33), slice(44, 50))


def test_peaks_nearly_as_high_are_all_told():
    # The saddle lies between a quarter of the way to the one and to the other.
    first, second = pieces(np.array([[10, 5, 2.4, 2.4, 6, 9, 2]], np.float32), 0, share=0.25)
    assert [(p.columns, p.peak) for p in (first, second)] == [(slice(0, 2), 10), (slice(4, 6), 9)]
    (only,) = pieces(np.array([[10, 5, 2.4, 2.4, 2.45, 2.4, 2]], np.float32), 0, share=0.25)
    assert only.columns == slice(0, 2)


def test_a_flat_map_is_one_region():
    (region,) = pieces(np.ones((300, 400), np.float32), 0)
    assert region.area == 120_000


def blobs(count, rng, side=40):
    """Return maps of normal images: noise, and a spot of a random size in each."""
    maps = rng.random((count, side, side)).astype(np.float32)
    for heat in maps:
        edge = int(rng.integers(1, 9))
        heat[5 : 5 + edge, 7 : 7 + edge] += 5
    return maps


@pytest.mark.parametrize(("n", "target"), [(39, 0.05), (60, 0.2)])
def test_few_normals_show_a_region_and_others_do(n, target):
    maps = blobs(n, np.random.default_rng(n))
    scores = np.linspace(1, 2, n)
    for found in (
        calibrate_out_of_fold(scores, maps, {}, target_fpr=target, pixel_fpr=0.02),
        calibrate(scores, maps, target_fpr=target, pixel_fpr=0.02),
    ):
        cut, larger = found.pixel_threshold, found.volume_threshold
        shown = [bool(pieces(heat, cut, larger, volume=True)) for heat in maps]
        assert np.mean(shown) <= target
        # The smallest such volume: a little less, and too many show one.
        less = larger * (1 - 1e-6)
        more = sum(bool(pieces(heat, cut, less, volume=True)) for heat in maps)
        assert (more + 1) / (n + 1) > target
        defect = maps[0].copy()
        defect[20:32, 20:32] += 5
        (region,) = pieces(defect, cut, larger, volume=True)
        assert (region.rows, region.columns) == (slice(20, 32), slice(20, 32))
        # As much in fewer pixels is told, too.
        high = maps[0].copy()
        high[20:24, 20:24] += 40
        (region,) = pieces(high, cut, larger, volume=True)
        assert region.area == 16


def test_a_normal_that_stands_out_does_not_set_the_area():
    maps = blobs(40, np.random.default_rng(1))
    before = calibrate_out_of_fold(np.linspace(1, 2, 40), maps, {}, pixel_fpr=0.02)
    scores = np.append(np.linspace(1, 2, 40), 900.0)
    spoiled = np.concatenate([maps, np.full((1, 40, 40), 9, np.float32)])
    after = calibrate_out_of_fold(scores, spoiled, {}, pixel_fpr=0.02)
    assert after.odd == 1
    assert after.volume_threshold == before.volume_threshold > 0
    assert calibrate_out_of_fold(scores, None, {}).volume_threshold is None
