"""What is to be found in the pixels of test samples, at the resolution of their masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import overload

import numpy as np

from features.images.masks import read_mask, scaled
from features.images.preprocess import map_to_image, mask_to_input
from flows.extraction.samples import Sample
from flows.training.data import TrainingData
from flows.training.scoring import Maps
from heads.looking import seen_of
from headwater.spec import ExtractorSpec
from headwater.tiles import joined_size


class OwnMaps(Sequence[np.ndarray]):
    """Maps brought to the resolution of their masks, one at a time as they are asked for.

    What the net sees is coarser than most masks: brought down to it, small defects would vanish.
    So the maps are brought up, as they are where somebody looks at them.
    """

    def __init__(
        self, maps: Maps, sizes: Sequence[tuple[int, int] | None], spec: ExtractorSpec
    ) -> None:
        self.maps, self.sizes, self.spec = maps, sizes, spec

    def __len__(self) -> int:
        return len(self.maps)

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, i: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(i, slice):
            return OwnMaps(self.maps[i], self.sizes[i], self.spec)
        heat, size = self.maps[i], self.sizes[i]
        # Of an image seen in tiles the joined map is of that size.
        if size is None or self.spec.tiles is not None:
            return heat
        return map_to_image(heat, *size, self.spec)


@dataclasses.dataclass
class Truth:
    """What is known of the pixels of test samples.

    Parameters
    ----------
    maps
        Of each sample, at the size of its mask.
    masks
        Of each sample, ``[H, W]`` bool: its mask, empty for a normal image without one; None where
        the truth is not known, or nothing of it can be seen. Those of more than
        `headwater.tiles.MAP_SIDE` pixels are smaller.
    """

    maps: OwnMaps
    masks: list[np.ndarray | None]

    def only(self, at: Sequence[int]) -> Truth:
        """Return what is known of some of the samples."""
        own = self.maps
        maps = [own.maps[i] for i in at], [own.sizes[i] for i in at]
        return Truth(OwnMaps(*maps, own.spec), [self.masks[i] for i in at])

    def shown(self) -> list[np.ndarray | None]:
        """Return the masks at the size of the heads' maps, for pictures."""
        return [_shown(m, self.maps.spec) for m in self.masks]


def truth_of(
    data: TrainingData,
    samples: Sequence[Sample],
    maps: Maps,
    notes: list[str],
    *,
    called: str = "test",
) -> tuple[list[Sample], Truth]:
    """Return samples and what is known of their pixels, as far as these are looked at.

    `called` is what `notes` call them.

    What has its defect outside of the region of interest alone is normal inside. What has it in
    what a crop cuts away stays defective: it was to be found, and no head can; it counts for the
    image metrics only. Both are noted.
    """
    masks = [_mask_of(s, notes) for s in samples]
    sizes = [
        m.shape if m is not None else s.size and joined_size(*s.size)
        for s, m in zip(samples, masks, strict=True)
    ]
    own, told = OwnMaps(maps, sizes, data.spec), list(samples)
    gone: list[str] = []
    hidden: list[str] = []
    partly = 0
    for i, (sample, mask) in enumerate(zip(samples, masks, strict=True)):
        if mask is None:
            if sample.defective is False and not sample.is_pair:
                masks[i] = np.zeros(sizes[i] or np.shape(maps[i]), bool)
            continue
        inside = mask & seen_of(own[i])
        masks[i] = inside
        if inside.any() or not mask.any():
            partly += bool(inside.sum() < mask.sum())
        elif data.spec.region:
            told[i] = dataclasses.replace(sample, kind="good")
            gone.append(sample.key)
        else:
            hidden.append(sample.key)
            masks[i] = None
    kind = data.kind
    if gone:
        notes.append(
            f"{len(gone)} {called} {kind.name}(s) with nothing to be found inside the region of "
            f"interest count as {kind.verdicts[0]}, such as {gone[0]}"
        )
    if hidden:
        notes.append(
            f"{len(hidden)} of {sum(bool(s.defective) for s in samples)} {kind.verdicts[1]} "
            f"{called} {kind.name}(s) have all that is to be found in what the crop cuts away, "
            f"such as {hidden[0]}: no head can see it, and they count as {kind.verdicts[1]}; "
            f"{partly} more have a part of it there"
        )
    return told, Truth(own, masks)


def shown_masks(
    samples: Sequence[Sample], spec: ExtractorSpec, notes: list[str]
) -> list[np.ndarray | None]:
    """Return the samples' masks at the size of the heads' maps, for what needs no more than that.

    None where there is none, or, noted, where it cannot be read.
    """
    return [_shown(_mask_of(s, notes), spec) for s in samples]


def _shown(mask: np.ndarray | None, spec: ExtractorSpec) -> np.ndarray | None:
    if mask is None or spec.tiles is not None:
        return mask
    return mask_to_input(mask, spec, keep_small=True)


def _mask_of(sample: Sample, notes: list[str]) -> np.ndarray | None:
    """Return a sample's mask at its own size; None, noted, where it cannot be read."""
    if sample.mask is None:
        return None
    try:
        mask = read_mask(sample.mask, sample.size)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        notes.append(f"{sample.mask}: {first}; counts for image metrics only")
        return None
    return scaled(mask, joined_size(*mask.shape))
