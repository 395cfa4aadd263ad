"""Which normal scores stand out: mislabelled, soiled, or rare."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwater.errors import DataError

#: How rarely the largest of n ordinary scores is to be taken for one that stands out.
_RARELY = 0.01
#: At most this share of the normals may stand out, but one always may.
MOST_ODD = 0.1


def standing_out(scores: ArrayLike) -> NDArray[np.bool_]:
    """Return which of the scores stand out: far above what the others' tail explains.

    The scores above the median are taken to fall off exponentially. Their scale is told by all of
    them but the largest tenth (one at least), which are looked at as censored, so that they
    cannot move it (Epstein and Sobel, "Life testing", 1953). What the largest of so many exceeds
    with probability 0.01 at most stands out: mislabelled, soiled, or rare. No more than that
    tenth can; what else there is counts like any other.

    Raises
    ------
    DataError
        Scores that are not finite.

    Examples
    --------
    >>> bool(standing_out([1, 2, 3, 4, 5, 6, 7, 8, 9]).any())
    False
    >>> standing_out([1, 2, 90, 4, 5, 6, 7, 8, 3]).nonzero()[0]
    array([2])
    """
    given = finite(scores)
    values, n = np.sort(given), given.size
    if n < 4:
        return np.zeros(n, bool)
    middle, most = float(np.median(values)), max(1, int(MOST_ODD * n))
    excess = values[(n + 1) // 2 :] - middle
    known = excess.size - most
    scale = (excess[:known].sum() + most * excess[known - 1]) / known
    # An exponential over its scale as so many others tell it: P(> c) = (1 + c / known)^-known.
    beyond = known * ((excess.size / _RARELY) ** (1 / known) - 1)
    if scale <= 0:
        return np.zeros(n, bool)
    # No more than were left out of the scale, whatever ties there are.
    limit = max(middle + scale * beyond, values[n - most - 1])
    return np.asarray(given > limit)


def finite(scores: ArrayLike) -> NDArray[np.float64]:
    """Return scores as one row; `DataError` where there is none, or one is not finite."""
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not values.size:
        raise DataError(
            "no held-out normal scores", expected="at least one", remedy="hold out normal images"
        )
    if not np.isfinite(values).all():
        raise DataError("held-out scores that are not finite", expected="finite scores")
    return values
