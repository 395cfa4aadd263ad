"""Image figures of each kind of defect by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from heads.judging.metrics import as_classes, auroc


def by_kind(
    scores: ArrayLike, kinds: Sequence[str], threshold: float, normal: str = "good"
) -> dict[str, dict[str, float]]:
    """Return how each kind of defect is told from the normal images.

    Parameters
    ----------
    scores
        ``[N]`` image scores.
    kinds
        ``[N]`` kinds of the images.
    threshold
        An image is called anomalous where its score is greater.
    normal
        Kind of the normal images.

    Returns
    -------
    dict
        By kind, sorted: ``images``, ``image_recall``, and ``image_auroc`` of its images against all
        normal ones, where there are any.

    Examples
    --------
    >>> by_kind([1, 2, 3, 1], ["good", "good", "crack", "dent"], 2.5)["dent"]
    {'images': 1.0, 'image_recall': 0.0, 'image_auroc': 0.25}
    """
    values, _ = as_classes(scores, [kind != normal for kind in kinds])
    names = np.asarray(kinds)
    found: dict[str, dict[str, float]] = {}
    for kind in sorted({*kinds} - {normal}):
        own = values[names == kind]
        found[kind] = {"images": float(own.size), "image_recall": float((own > threshold).mean())}
        if good := values[names == normal].tolist():
            labels = np.arange(len(good) + own.size) >= len(good)
            found[kind]["image_auroc"] = auroc([*good, *own.tolist()], labels)
    return found
