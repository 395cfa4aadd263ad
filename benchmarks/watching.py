"""How often the tests of drift ring on normal days, and how soon on real shifts.

    python -m benchmarks.watching --images ../shared/data/images/magnetic_tile [--home DIR] \
        [--heads padim,patchcore] [--size 128] [--scores scores.npz]
    python -m benchmarks.watching --table scores.npz

The set is trained once (``--home`` keeps it); its normal test images, which nothing has learnt
from, are scored as they are and changed as a camera changes: brighter, darker, blurred. These
scores are then dealt out to days of 20, 50 and 200 images, many times over:

- ``drawn``: each image by chance;
- ``as they come``: runs of 20 neighbours by name, as frames of a line come;
- ``with defects``: drawn, and 3 of 100 are defects.

On the days that are as they should be every alarm is false; on the changed ones the share of days
that ring says how soon a shift is seen. Each test is given the p-value at which it rings, and the
one that `flows.watching.drift` has is among them.
"""

from __future__ import annotations

import argparse
import tempfile

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy import stats

from benchmarks.machine import machine, tell

Scores = NDArray[np.float64]
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
DRAWS = 2000
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


def days(
    scores: Scores, size: int, how: str, defects: Scores, rng: np.random.Generator
) -> Iterator[Scores]:
    """Yield days of so many scores, dealt out as the module says."""
    for _ in range(DRAWS):
        if how == "as they come":
            begins = rng.integers(0, len(scores), -(-size // RUN))
            at = (begins[:, None] + np.arange(RUN)).ravel()[:size] % len(scores)
            yield scores[at]
            continue
        day = rng.choice(scores, size)
        if how == "with defects":
            spoilt = rng.random(size) < DEFECTS
            day[spoilt] = rng.choice(defects, int(spoilt.sum()))
        yield day


def candidates(day: Scores, reference: Scores, promise: Scores) -> dict[str, float]:
    """Return the p-value of each test of a day against a reference."""
    threshold, rate = promise
    flagged = int((day > threshold).sum())
    return {
        "Kolmogorov-Smirnov": stats.ks_2samp(day, reference).pvalue,
        "Cramer-von Mises": stats.cramervonmises_2samp(day, reference).pvalue,
        "Mann-Whitney": stats.mannwhitneyu(day, reference).pvalue,
        "binomial": stats.binomtest(flagged, len(day), rate, alternative="greater").pvalue,
    }


def table(found: dict[str, Scores]) -> None:
    """Print the tables."""


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
