"""The backbone of a job: found once, loaded once a process, its arithmetic settled once a set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.backbones.backbone import Backbone, load_backbone
from features.backbones.weights import find_weights
from headwater.spec import Precision, digest

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from flows.runtime.settings import BackboneSettings

#: The backbone that this process holds, between planning and extracting or between two blocks.
_KEPT: dict[str, Backbone] = {}


@dataclass(frozen=True)
class BackboneRef:
    """All it takes to load one backbone, anywhere: plain data.

    Parameters
    ----------
    name
        timm model name.
    weights
        Weight file, None for an untrained net.
    options
        Sorted ``(name, JSON value)`` pairs.
    untrained_seed
        Of a test's net.
    """

    name: str
    weights: str | None
    options: tuple[tuple[str, Any], ...] = ()
    untrained_seed: int | None = None

    @classmethod
    def of(cls, chosen: BackboneSettings, untrained_seed: int | None = None) -> BackboneRef:
        """Find the weights of the backbone chosen; `WeightsError` where there are none."""
        weights = None
        if untrained_seed is None:
            weights = str(find_weights(chosen.name, chosen.weights))
        return cls(chosen.name, weights, tuple(sorted(chosen.options.items())), untrained_seed)

    def load(self) -> Backbone:
        """Load it anew."""
        return load_backbone(
            self.name,
            Path(self.weights) if self.weights else None,
            options=dict(self.options),
            untrained_seed=self.untrained_seed,
        )

    def keep(self, backbone: Backbone) -> None:
        """Hold `backbone`, which is this one, for `kept`; any other is let go."""
        forget()
        _KEPT[digest(dataclasses.asdict(self))] = backbone

    def kept(self) -> Backbone:
        """Return the one that this process holds; loaded, and held, where it has none."""
        if digest(dataclasses.asdict(self)) not in _KEPT:
            self.keep(self.load())
        return next(iter(_KEPT.values()))


def forget() -> None:
    """Let go of the backbone that is held."""
    _KEPT.clear()


def settle_precision(backbone: Backbone, wanted: str, home: Home, image_set: str) -> Precision:
    """Return the arithmetic a backbone is to run in.

    ``auto`` is what the set remembers of this backbone, or is measured: the arithmetic is part of
    the extractor's identity and must not change with the machine's mood.
    """
    if wanted != "auto":
        return "bfloat16" if wanted == "bfloat16" else "float32"
    settled: dict[str, Precision] = home.card(image_set).get("precision", {})
    known = settled.get(arithmetic_key(backbone.name, backbone.weights_id))
    return known or backbone.best_precision()


def arithmetic_key(name: str, weights_id: str) -> str:
    """Return what a set remembers the arithmetic of a backbone by."""
    return f"{name}:{weights_id}"
