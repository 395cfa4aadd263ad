"""How often the tests of drift ring on normal days, and how soon on real shifts.

    python -m benchmarks.watching --images ../shared/data/images/magnetic_tile [--home DIR] \
        [--heads padim,patchcore] [--size 128] [--scores scores.npz]
    python -m benchmarks.watching --table scores.npz

The set is trained once (``--home`` keeps it); its normal test images, which nothing has learnt
from, are scored as they are and changed as a camera changes: brighter, darker, blurred. One half of
them is the reference, the other half is dealt out to days of 20, 50 and 200 images, many times over
and for many halves:

- ``drawn``: each image by chance;
- ``as they come``: runs of 20 neighbours by name, as frames of a line come;
- ``with defects``: drawn, and 3 of 100 are defects.

On the days that are as they should be every alarm is false; on the changed ones the share of days
that ring says how soon a shift is seen. ``our_day`` is a day that `flows.watching.drift` says has
drifted, ``ours`` one that is the last of so many in a row as the status rings at. ``out of fold``
takes the scores that set the threshold as the reference instead.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy import stats

from benchmarks.machine import machine, tell
from flows.watching.drift import IN_A_ROW, RARELY, drift

Scores = NDArray[np.float64]
Ints = NDArray[np.int64]
#: What rings, in the order of `asked`: our own, and the p-values of others below `ALPHA`.
TESTS = ("our_day", "kolmogorov", "cramer", "whitney", "binomial")
ALPHA = RARELY
#: Page's sum over days of the deviate of Mann and Whitney, less what is let pass, and its limit.
SLACK, LIMIT = 1.5, 6.0
#: Halves that days are dealt from.
SPLITS = 20
#: A camera's changes.
SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "brighter by 2 %": lambda one: ImageEnhance.Brightness(one).enhance(1.02),
    "brighter by 5 %": lambda one: ImageEnhance.Brightness(one).enhance(1.05),
    "brighter by 10 %": lambda one: ImageEnhance.Brightness(one).enhance(1.10),
    "darker by 10 %": lambda one: ImageEnhance.Brightness(one).enhance(0.90),
    "blur of 0.7 px": lambda one: one.filter(ImageFilter.GaussianBlur(0.7)),
    "blur of 1.5 px": lambda one: one.filter(ImageFilter.GaussianBlur(1.5)),
}
SIZES = (20, 50, 200)
DRAWS = 1000
RUN = 20
DEFECTS = 0.03


def scored(folder: Path, home: Path, heads: list[str], size: int) -> dict[str, Scores]:
    """Train the set where it is not, and return scores by ``HEAD/WHAT``."""
    import headwater
    from features.images.pixels import read_image
    from storage.registry.registry import Registry
    from storage.serving.detector import Detector

    name = "tile"
    opened = headwater.open(home)
    opened.run(name, folder, heads=heads, size=size, preset="small", workers=1)
    good = sorted((folder / "test" / "good").iterdir())
    kinds = sorted(p for p in (folder / "test").iterdir() if p.name != "good")
    bad = [file for kind in kinds for file in sorted(kind.iterdir())[:20]]
    registry, found = Registry(home), dict[str, Scores]()
    for head in heads:
        detector = Detector.load(registry.get_model(name, head)["uri"], registry)
        found[f"{head}/reference"] = np.asarray(detector.calibration.scores)
        found[f"{head}/promise"] = np.asarray(
            [detector.calibration.threshold, detector.calibration.attained_fpr]
        )
        found[f"{head}/normal"] = _scores(detector, [read_image(file) for file in good])
        found[f"{head}/defects"] = _scores(detector, [read_image(file) for file in bad])
        for shift, change in SHIFTS.items():
            changed = [np.asarray(change(Image.open(f).convert("RGB"))) for f in good]
            found[f"{head}/{shift}"] = _scores(detector, changed)
    return found


def _scores(detector, pixels) -> Scores:  # type: ignore[no-untyped-def]
    return np.asarray([one.score for image in pixels for one in detector.predict([image])])


def halves(count: int, how: str, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return which images are the reference and which are served; runs of neighbours stay whole."""
    runs = np.arange(count) // (RUN if how == "as they come" else 1)
    chosen = rng.permutation(runs.max() + 1)[: (runs.max() + 1) // 2]
    known = np.isin(runs, chosen)
    return np.flatnonzero(known), np.flatnonzero(~known)


def day_of(
    scores: Scores, size: int, how: str, defects: Scores, rng: np.random.Generator
) -> Scores:
    """Return a day of so many scores, dealt out as the module says."""
    if how == "as they come":
        begins = rng.integers(0, len(scores), -(-size // RUN))
        return scores[(begins[:, None] + np.arange(RUN)).ravel()[:size] % len(scores)]
    day = rng.choice(scores, size)
    if how == "with defects":
        spoilt = rng.random(size) < DEFECTS
        day[spoilt] = rng.choice(defects, int(spoilt.sum()))
    return day


def asked(day: Scores, reference: Scores, promise: Scores) -> tuple[list[bool], float]:
    """Return which of `TESTS` ring for a day, and the deviate of Mann and Whitney for the sum."""
    threshold, rate = promise
    flagged = int((day > threshold).sum())
    own = drift(day, reference)
    assert own is not None
    n, m = len(day), len(reference)
    whitney = stats.mannwhitneyu(day, reference)
    z = (whitney.statistic - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    rings = [
        own.drifted,
        own.p_value < ALPHA,
        stats.cramervonmises_2samp(day, reference, method="asymptotic").pvalue < ALPHA,
        whitney.pvalue < ALPHA,
        stats.binomtest(flagged, n, rate, alternative="greater").pvalue < ALPHA,
    ]
    return [bool(one) for one in rings], float(z)


def measured(
    found: Mapping[str, Scores], head: str, what: str, size: int, how: str, draws: int
) -> dict[str, Any]:
    """Return the share of days that ring, by test; of the sum over days, how many days apart."""
    rng = np.random.default_rng(0)
    rings, sums, alarms, since, gaps = np.zeros(len(TESTS)), 0.0, 0, 0, list[int]()
    row, ours = 0, 0
    for number in range(draws):
        if number % (draws // SPLITS) == 0:
            known, served = halves(len(found[f"{head}/normal"]), how, rng)
            if what == "out of fold":
                reference, shown = found[f"{head}/reference"], found[f"{head}/normal"][served]
            else:
                reference, shown = found[f"{head}/normal"][known], found[f"{head}/{what}"][served]
            sums, since, row = 0.0, 0, 0
        day = day_of(shown, size, how, found[f"{head}/defects"], rng)
        rang, z = asked(day, reference, found[f"{head}/promise"])
        rings += rang
        row = row + 1 if rang[0] else 0
        ours += row >= IN_A_ROW
        sums, since = max(0.0, sums + abs(z) - SLACK), since + 1
        if sums > LIMIT:
            alarms += 1
            gaps.append(since)
            sums, since = 0.0, 0
    shares = dict(zip(TESTS, (rings / draws).round(4).tolist(), strict=True))
    apart = round(float(np.mean(gaps)), 1) if gaps else None
    return {"head": head, "scores": what, "a_day": size, "dealt": how, "days": draws,
            "ours": round(ours / draws, 4), **shares,
            "cusum": round(alarms / draws, 4), "cusum_days": apart}  # fmt: skip


def table(found: Mapping[str, Scores]) -> None:
    """Print a line a measurement: first days as they should be, then changed ones."""
    tell(machine(), None)
    heads = sorted({name.partition("/")[0] for name in found})
    for head in heads:
        for size in SIZES:
            for how in ("drawn", "as they come", "with defects"):
                tell(measured(found, head, "normal", size, how, DRAWS), None)
            tell(measured(found, head, "out of fold", size, "drawn", DRAWS // 5), None)
        for shift in SHIFTS:
            for size in SIZES:
                tell(measured(found, head, shift, size, "drawn", DRAWS // 5), None)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, default=Path("../shared/data/images/magnetic_tile"))
    parser.add_argument("--home", type=Path, help="where the set is trained, and found again")
    parser.add_argument("--heads", default="padim,patchcore")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scores", type=Path, help="file that keeps the scores")
    parser.add_argument("--table", type=Path, help="print the tables of kept scores, ask no model")
    a = parser.parse_args()
    if a.table:
        with np.load(a.table) as kept:
            return table(dict(kept))
    with tempfile.TemporaryDirectory() as scratch:
        found = scored(a.images, a.home or Path(scratch), a.heads.split(","), a.size)
    if a.scores:
        np.savez(a.scores, **found)
    table(found)


if __name__ == "__main__":
    main()
