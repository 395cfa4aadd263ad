"""How the images of a set are shaped, and what that means for bringing them to one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headwater.spec import Fitting

#: Images whose aspect is within this share of the size's are squashed: nobody sees it, and no
#: pixel is spent on padding.
NEAR = 0.05


def choose_fitting(
    sizes: Iterable[tuple[int, int]], target: tuple[int, int]
) -> tuple[Fitting, str]:
    """Return how images are best brought to a size, by their own shapes, and why, in a sentence.

    ``squash`` where every image's aspect is within 5 % of the target's; else ``fit``, which
    distorts nothing and cuts nothing off. The sentence is empty where all ways are the same.

    Parameters
    ----------
    sizes
        ``(height, width)`` of each image, pixels.
    target
        ``(height, width)`` to which they are brought.

    Examples
    --------
    >>> choose_fitting([(480, 640)] * 3, (256, 256))[0]
    'fit'
    >>> choose_fitting([(480, 640)] * 3, (192, 256))[0]
    'squash'
    """
    counted = Counter(sizes)
    want = target[1] / target[0]
    off = {s: n for s, n in counted.items() if abs(s[1] / s[0] / want - 1) > NEAR}
    asked = f"{target[0]}x{target[1]}"
    if all(h * target[1] == w * target[0] for h, w in counted):
        return "squash", ""
    if not off:
        return "squash", f"images are squashed a little to {asked} px: their aspect is nearly that"
    shape, most = max(off.items(), key=lambda item: item[1])
    bare = len(counted) == 1
    which = "images are" if bare else f"{sum(off.values())} of {counted.total()} images are as"
    sentence = (
        f"{which} {shape[0]}x{shape[1]} px: they keep their aspect, padded to {asked} (fit);"
        " --resize squash or crop does otherwise"
    )
    if most > 0.9 * counted.total():
        sentence += f", and --size {_beside(shape, target)} needs next to no padding"
    return "fit", sentence


def _beside(shape: tuple[int, int], target: tuple[int, int]) -> str:
    """Return a size of this shape of about as many pixels, in steps of 32, that nets like."""
    area = target[0] * target[1]
    ratio = (area / (shape[0] * shape[1])) ** 0.5
    return "x".join(str(max(32, round(side * ratio / 32) * 32)) for side in shape)
