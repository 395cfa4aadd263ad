"""Intervals against plain loops over draws, DeLong against its definition."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from heads.judging.metrics import evaluate
from heads.judging.resampling import Resamples, count_pixels, delong, draw, resample


def scored(n=40, seed=0, size=24):
    """Return scores, maps, labels, masks, kinds of a drawn test set, with ties."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    kinds = ["good" if not bad else ("dent", "scratch")[i % 2] for i, bad in enumerate(labels)]
    scores = np.round(rng.normal(labels * 1.0, 1), 1)
    masks = [np.zeros((size, size), bool) for _ in range(n)]
    maps = rng.normal(size=(n, size, size)).astype(np.float32)
    for i in np.flatnonzero(labels):
        y, x = rng.integers(0, size - 8, 2)
        masks[i][y : y + 5, x : x + 7] = True
        masks[i][0, 0] = True
        maps[i][masks[i]] += 1.5
    return scores, maps, labels, masks, kinds


def plain(scores, maps, labels, masks, times, threshold, pixel_threshold):
    """Return the figures of one draw, each image as often as it was drawn."""
    rows = np.repeat(np.arange(len(scores)), times.astype(int))
    return evaluate(
        scores[rows], maps[rows], labels[rows], [masks[r] for r in rows],
        threshold=threshold, pixel_threshold=pixel_threshold,
    )  # fmt: skip


def test_each_draw_is_what_the_metrics_give_on_its_images():
    scores, maps, labels, masks, kinds = scored()
    exact = evaluate(scores, maps, labels, masks, threshold=0.5, pixel_threshold=1.0)
    counts = count_pixels(maps, masks, 1.0)
    found = resample(scores, labels, kinds, 0.5, exact=exact, pixels=(counts,), count=6)
    times = draw(kinds, 6)
    assert set(found.figures) == {k for k in exact if not k.startswith("oracle")}
    for b in range(6):
        want = plain(scores, maps, labels, masks, times[b], 0.5, 1.0)
        for name, drawn in found.figures.items():
            off = 2e-3 if name in ("pixel_auroc", "pixel_ap", "aupro") else 1e-12
            assert drawn[b] == pytest.approx(want[name], abs=off), name


def test_weighted_figures_are_those_of_scikit_learn():
    scores, _, labels, _, kinds = scored(60, 3)
    exact = evaluate(scores, None, labels, None, threshold=0.5)
    found = resample(scores, labels, kinds, 0.5, exact=exact, count=5)
    for b, times in enumerate(draw(kinds, 5)):
        auroc = roc_auc_score(labels, scores, sample_weight=times)
        assert found.figures["image_auroc"][b] == pytest.approx(auroc, abs=1e-12)
        ap = average_precision_score(labels, scores, sample_weight=times)
        assert found.figures["image_ap"][b] == pytest.approx(ap, abs=1e-12)


def test_draws_keep_the_number_of_each_kind_and_do_not_hang_on_the_order():
    kinds = ["good"] * 7 + ["dent"] * 3 + ["crack"]
    times = draw(kinds, 50)
    assert (times[:, :7].sum(1) == 7).all()
    assert (times[:, 7:10].sum(1) == 3).all()
    assert np.array_equal(draw(kinds[::-1], 50)[:, ::-1][:, 7:10].sum(1), times[:, 7:10].sum(1))
    assert np.array_equal(times, draw(kinds, 50))
    assert not np.array_equal(times, draw(kinds, 50, 1))


def test_an_interval_covers_what_it_should():
    # Of 200 test sets of a known AUROC, about 95 % of the intervals hold it.
    true, held = norm.cdf(1 / 2**0.5), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.arange(80) % 2 == 0
        scores = rng.normal(labels * 1.0, 1)
        exact = evaluate(scores, None, labels, None)
        kinds = np.where(labels, "bad", "good").tolist()
        found = resample(scores, labels, kinds, 0.5, exact=exact, count=300)
        low, high = found.interval("image_auroc")
        held += low <= true <= high
    assert 0.89 <= held / 200 <= 0.99


def test_delong_is_its_definition_and_finds_what_differs():
    rng = np.random.default_rng(1)
    labels = rng.random(50) < 0.5
    a, b = rng.normal(labels * 1.0, 1), rng.normal(labels * 0.8, 1)
    gap, p = delong(a, b, labels)
    assert gap == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b))
    # The definition: covariances of the structural components, written out.
    bad, good = np.flatnonzero(labels), np.flatnonzero(~labels)
    v10, v01 = np.zeros((2, len(bad))), np.zeros((2, len(good)))
    for k, values in enumerate((a, b)):
        psi = lambda x, y: 1.0 if x > y else 0.5 if x == y else 0.0  # noqa: E731
        v10[k] = [np.mean([psi(values[i], values[j]) for j in good]) for i in bad]
        v01[k] = [np.mean([psi(values[i], values[j]) for i in bad]) for j in good]
    cov = np.cov(v10) / len(bad) + np.cov(v01) / len(good)
    z = gap / np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])
    assert p == pytest.approx(2 * norm.sf(abs(z)))
    perfect, worthless = labels * 1.0 + rng.random(50) / 2, rng.random(50)
    assert delong(perfect, worthless, labels)[1] < 1e-4


def test_the_same_draws_tell_a_small_difference_that_intervals_alone_hide():
    rng = np.random.default_rng(5)
    labels = np.arange(200) % 2 == 0
    kinds = np.where(labels, "bad", "good").tolist()
    worse = rng.normal(labels * 1.0, 1)
    better = worse + labels * 0.15  # the same errors, a little less of them
    found = [
        resample(s, labels, kinds, 0.5, exact=evaluate(s, None, labels, None))
        for s in (better, worse)
    ]
    (low, _), (_, high) = found[0].interval("image_auroc"), found[1].interval("image_auroc")
    assert low < high  # the intervals overlap
    gap = found[0].difference(found[1], "image_auroc")
    assert gap[0] > 0
    again = Resamples.from_json(found[0].to_json())
    assert again.interval("image_auroc") == pytest.approx(
        found[0].interval("image_auroc"), abs=1e-5
    )
    assert found[0].difference(Resamples(1, found[1].figures), "image_auroc") is None
