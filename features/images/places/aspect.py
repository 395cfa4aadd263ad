"""How the images of a set are shaped, and what that means for bringing them to one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

#: Images whose aspect is within this share of the size's are hardly distorted.
NEAR = 0.05


def about_shapes(sizes: Iterable[tuple[int, int]], target: tuple[int, int]) -> str:
    """Return what squashing does to images of these shapes, in a sentence; empty for nothing.

    Squashing is what a set gets unless another way is asked for: measured on images of many
    aspects (docs/benchmarks.md), heads found no less by it than by padding or cropping.

    Parameters
    ----------
    sizes
        ``(height, width)`` of each image, pixels.
    target
        ``(height, width)`` to which they are brought.

    Examples
    --------
    >>> about_shapes([(480, 640)] * 3, (192, 256))
    ''
    """
    counted = Counter(sizes)
    want = target[1] / target[0]
    off = {s: n for s, n in counted.items() if abs(s[1] / s[0] / want - 1) > NEAR}
    asked = f"{target[0]}x{target[1]}"
    if all(h * target[1] == w * target[0] for h, w in counted):
        return ""
    if not off:
        return f"images are squashed a little to {asked} px: their aspect is nearly that"
    shape, most = max(off.items(), key=lambda item: item[1])
    bare = len(counted) == 1
    which = "images are" if bare else f"{sum(off.values())} of {counted.total()} images are as"
    sentence = f"{which} {shape[0]}x{shape[1]} px, and are squashed to {asked}"
    if most > 0.9 * counted.total():
        return f"{sentence}; --size {_beside(shape, target)} hardly distorts them"
    return f"{sentence}; --resize fit or crop does otherwise"


def _beside(shape: tuple[int, int], target: tuple[int, int]) -> str:
    """Return a size of this shape of about as many pixels, in steps of 32, that nets like."""
    area = target[0] * target[1]
    ratio = (area / (shape[0] * shape[1])) ** 0.5
    return "x".join(str(max(32, round(side * ratio / 32) * 32)) for side in shape)
