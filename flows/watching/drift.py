"""Whether the scores of a day are like the model's scores of normals that it has not learnt from.

The two-sample test of Kolmogorov and Smirnov (`scipy.stats.ks_2samp`): the largest distance between
the two shares of scores up to a value. It assumes nothing of how scores are distributed. What to
compare with are the normal test images of the model's training. The out-of-fold scores that set its
threshold will not do: the heads of the folds have seen fewer images and score higher, so that a
sound day of patchcore is 0.39 away from them (docs/watching.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A day of fewer answers tells too little.
LEAST = 20
#: A day drifted where its distance would be as large so rarely, and is this large at least: frames
#: in a row are alike, and what is no chance for images that are drawn is an ordinary day of these.
RARELY, FAR = 1e-4, 0.4
#: So many days in a row ring. docs/watching.md has how often they do for nothing.
IN_A_ROW = 2


@dataclass(frozen=True)
class Drift:
    """How far a day's scores are from those of known normals.

    Parameters
    ----------
    distance
        Of Kolmogorov and Smirnov: 0 where they are distributed alike, 1 where none is among the
        others.
    p_value
        How often it is as large by chance, where images come one by one as they were drawn.
    higher
        Whether the day's scores are higher on the whole.
    drifted
        Whether the day is one that, with the next, somebody should look at.
    """

    distance: float
    p_value: float
    higher: bool
    drifted: bool

    def __str__(self) -> str:
        way = "higher" if self.higher else "lower"
        return f"{way} by a distance of {self.distance:.2f}, by chance once in {self._once}"

    @property
    def _once(self) -> str:
        return f"{1 / self.p_value:,.0f} days" if self.p_value > 1e-6 else "a million days or more"


def drift(scores: NDArray[np.float64], reference: NDArray[np.float64]) -> Drift | None:
    """Return how far scores are from those of normals; None where there are too few of either.

    Parameters
    ----------
    scores
        Of a day, ``[n]``.
    reference
        Of normals that the model had not learnt from, ``[m]``.

    Examples
    --------
    >>> normal = np.linspace(0, 1, 100)
    >>> drift(normal[::2], normal).drifted, drift(normal[::2] + 0.5, normal).drifted
    (False, True)
    """
    if min(len(scores), len(reference)) < LEAST:
        return None
    from scipy.stats import ks_2samp  # late: a second

    found = ks_2samp(scores, reference)
    distance, p_value = float(found.statistic), float(found.pvalue)
    return Drift(
        distance,
        p_value,
        bool(np.median(scores) > np.median(reference)),
        p_value < RARELY and distance > FAR,
    )
