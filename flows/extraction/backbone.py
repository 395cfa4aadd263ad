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

    ``auto`` is settled by a measurement once for a set and backbone, and remembered: the arithmetic
    is part of the extractor's identity and must not change with the machine's mood. So is one that
    was given first: what was extracted in it is found by a training that names none.
    """
    card = home.card(image_set)
    settled: dict[str, Precision] = card.setdefault("precision", {})
    key = f"{backbone.name}:{backbone.weights_id}"
    given: Precision | None = None
    if wanted != "auto":
        given = "bfloat16" if wanted == "bfloat16" else "float32"
        if key in settled:
            return given
    if key not in settled:
        settled[key] = given or backbone.best_precision()
        home.write_card(image_set, card)
    return settled[key]
