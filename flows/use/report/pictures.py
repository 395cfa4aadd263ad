"""The pictures of a page: of the samples, their masks and their small maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.images.depth import levels
from features.images.masks import read_mask, scaled
from features.images.pixels import read_image
from flows.extraction.pair_list import Version
from flows.extraction.samples import Sample
from flows.pictures.page.thumbs import heat_address, outline_address, picture_address
from flows.runtime.home import Home
from flows.training.data import samples_at
from flows.training.small_maps import SmallMap
from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    from flows.runtime.console import Reporter


def samples_by_content(home: Home, image_set: str, at: Version) -> dict[str, Sample]:
    """Return the samples of a version by their content; none where it is not there any more."""
    root = Path(home.card(image_set).get("root", ""))
    try:
        _, _, samples = samples_at(home, image_set, at, root)
    except (HeadwaterError, OSError):
        return {}
    return {"".join(s.contents): s for s in samples}


def drawn(
    samples: Sequence[Sample | None],
    edge: int,
    value_range: tuple[float, float] | None,
    reporter: Reporter,
    what: str,
) -> list[dict[str, Any]]:
    """Return of each sample its ``pictures``, the outline of its ``mask``, and its ``aspect``.

    The first two as addresses. What cannot be read (any more) has none. Several are read at a time.

    Parameters
    ----------
    edge
        Longer side of a picture at most, pixels.
    value_range
        Of images of more than 8 bits: what is black and what is white.
    what
        Is drawn, for the progress.
    """

    def one(sample: Sample | None) -> dict[str, Any]:
        made: dict[str, Any] = {"pictures": [], "mask": None, "aspect": None}
        if sample is None:
            return made
        try:
            images = [levels(read_image(path), value_range) for path in sample.paths]
            height, width = images[0].shape[:2]
            made["aspect"] = round(width / height, 4)
            made["pictures"] = [picture_address(image, edge) for image in images]
            if sample.mask is not None:
                mask = scaled(read_mask(sample.mask, sample.size), (height, width))
                made["mask"] = outline_address(mask, height, width, edge)
        except (OSError, ValueError):
            pass
        return made

    made = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(one, samples), 1):
            reporter.update(what, done, len(samples))
            made.append(found)
    return made


def laid_over(maps: Mapping[str, SmallMap], name: str) -> dict[str, Any] | None:
    """Return the layer of one small map and where it lies, in percent; None where there is none."""
    if (found := maps.get(name)) is None:
        return None
    return {"at": [round(100 * x, 3) for x in found.box], "src": heat_address(found.values)}
