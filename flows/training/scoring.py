"""What a fitted head gives on a source: scores and maps, of images seen in tiles joined ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from flows.training.data import StoredSamples
from heads.contract import FeatureSource, Head
from heads.judging.joining import Part, Standard, joined_maps, limit_of, settled, standard_of
from heads.judging.rules import rule_of
from heads.looking import LOOKED
from heads.training.out_of_fold import scored_source

#: Of several images, each with a size of its own, or of all in one.
Maps = np.ndarray | Sequence[Any]


class Scoring:
    """Scores sources with a head: row by row, or of images seen in tiles image by image.

    Attributes
    ----------
    standard
        See `Calibration`; known once the held-out images were scored.
    parts
        What their pooled scores are joined of, ``[M, K]``; None where nothing is pooled.
    """

    def __init__(self, head: Head, data: StoredSamples) -> None:
        self.head, self.data, self.rule = head, data, rule_of(head)
        self.tiled = data.spec.tiles is not None
        self.standard: Standard | None = None
        self.parts: np.ndarray | None = None

    def held_out(self, source: FeatureSource) -> tuple[np.ndarray, Maps]:
        """Return scores and maps of held-out normals, by which the others are made comparable.

        Pooled scores learn their scales from them.
        """
        if self.tiled:
            found = list(self._joined(source))
            self.standard = standard_of(found)
            scores, maps, self.parts = self._settled(found)
        else:
            scores, maps, self.parts = scored_source(self.head, source)
        return scores if self.parts is None else self.rule.settle(self.parts), maps

    def __call__(self, source: FeatureSource) -> tuple[np.ndarray, Maps]:
        """Return scores ``[N]`` and maps, an image after the other."""
        scores, maps, _ = self.with_parts(source)
        return scores, maps

    def with_parts(self, source: FeatureSource) -> tuple[np.ndarray, Maps, np.ndarray | None]:
        """Return what a call does, and what pooled scores are joined of, ``[N, K]``, if any."""
        if self.tiled:
            return self._settled(self._joined(source))
        return scored_source(self.head, source)

    @property
    def limit(self) -> float | None:
        """What no image score can exceed."""
        head = self.head
        return limit_of(head.map_limit, self.standard) if self.tiled else head.score_limit

    def _settled(
        self, found: Iterable[Sequence[Any]]
    ) -> tuple[np.ndarray, Maps, np.ndarray | None]:
        heats = [settled(maps, self.standard) for maps in found]
        each = [self.rule.of_map(heat) for heat in heats]
        parts = [own for _, own in each if own is not None]
        scores = np.array([score for score, _ in each], np.float32)
        return scores, heats, np.stack(parts) if parts else None

    @torch.no_grad()
    def _joined(self, source: Any, batch: int = 8) -> Iterator[Sequence[Any]]:
        """Yield the joined maps of each image, whose tiles follow each other in the source."""
        stop, spec = 0, self.data.spec
        for sha, rows in itertools.groupby(source.ids):
            start, stop = stop, stop + len(list(rows))

            def parts(start: int = start, stop: int = stop) -> Iterator[Part]:
                for low in range(start, stop, batch):
                    some = source.read(low, min(low + batch, stop))
                    maps = self.head.score(some).maps.float().cpu().numpy()
                    where = some[LOOKED].numpy() if LOOKED in some else [None] * len(maps)
                    yield from zip(source.parts[low:stop], maps, where)  # noqa: B905

            yield joined_maps(parts(), *self.data.size_of(sha), spec)
