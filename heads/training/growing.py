"""Growing: a fitted head takes new images in and others out, without learning all anew.

A head that can derives from `GrowingHead`. What it takes to grow, beside what it answers by, is its
`keepsake`: it is kept with the training's run, not in the model, which stays as small as it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor

from heads.contract import FeatureSource, Head, HeadConfig, Progress, TrainOptions
from headwater.errors import GrowthError


class Growth(NamedTuple):
    """All that a fitted head is given to grow by."""

    #: What its training kept, as `GrowingHead.keepsake` gave it; empty where it kept nothing.
    kept: Mapping[str, Tensor]
    #: Normal images that it has not learnt from, and those that it has and shall not have.
    new: FeatureSource
    gone: FeatureSource
    #: All that it then has learnt from. Reading these is what growing saves.
    train: FeatureSource
    options: TrainOptions
    progress: Progress
    #: Share of the epochs of a full training, for heads that learn by steps.
    share: float = 0.25


class GrowingHead(Head):
    """A head that may be grown instead of trained again."""

    #: Whether a grown head is the one that a full training gives, but for rounding.
    grows_exactly: ClassVar[bool] = False
    #: Whether it takes a keepsake: one whose training kept none cannot grow.
    keeps: ClassVar[bool] = True

    @staticmethod
    def why_not(config: HeadConfig) -> str:
        """Return why a head of this configuration cannot grow; empty where it can."""
        return ""

    def keepsake(self) -> dict[str, Tensor]:
        """Return what a fitted or grown head must be given to grow; empty where that is lost."""
        return {}

    def grown(self, growth: Growth) -> dict[str, float]:
        """Take in and out what `Growth` says; return figures. `grow` has checked the shapes.

        Raises
        ------
        GrowthError
            Where this head, as it is, cannot: then it has to be trained in full.
        """
        raise NotImplementedError


def grows(head: Head | type[Head]) -> bool:
    """Whether heads of a kind can grow."""
    return issubclass(head if isinstance(head, type) else type(head), GrowingHead)


def grow(head: Head, growth: Growth) -> dict[str, float]:
    """Grow a fitted head in place; return figures, with the time it took.

    Raises
    ------
    GrowthError
        Where the head cannot grow; its state is then of no use.
    """
    if not isinstance(head, GrowingHead):
        raise GrowthError(
            f"{head.name} learns all images together",
            expected="a head that can grow",
            remedy="train it in full",
        )
    if why := head.why_not(head.config):
        raise GrowthError(f"{head.name}: {why}", remedy="train it in full")
    if head.keeps and not growth.kept:
        raise GrowthError(
            f"{head.name}: its training kept nothing to grow from",
            expected="one of a Headwater that keeps it",
            remedy="train it in full once",
        )
    for source in (growth.new, growth.gone, growth.train):
        head.check(source)
    began = time.perf_counter()
    figures = head.grown(growth)
    head.mark_fitted()
    return {
        **figures,
        "images_new": float(len(growth.new)),
        "images_gone": float(len(growth.gone)),
        "fit_seconds": time.perf_counter() - began,
    }


def fewer_epochs(epochs: int, share: float) -> int:
    """Return a share of the epochs, at least one.

    Examples
    --------
    >>> fewer_epochs(100, 0.25), fewer_epochs(2, 0.1)
    (25, 1)
    """
    return max(1, math.ceil(epochs * share - 1e-9))
