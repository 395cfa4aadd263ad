"""The contract of a head: what it is asked, what it is given, what it gives.

A head is one file and a registration::

    @register
    class MyHead(Head): ...

It never opens a store: it is given `FeatureSource`s. This file imports of `heads` only `looking`,
so that all of them can import it; `heads.catalogue` lists and finds heads (docs/adding-a-head.md).
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from heads.looking import LOOKED, looking, quiet_outside
from headwater.errors import ConfigError, FeatureRangeError, NotFittedError, ShapeError
from headwater.spec import BackboneInfo, Needs

#: ``(channels, height, width)``.
Shape = tuple[int, int, int]
#: ``{layer name: shape}``, in the order in which `Head.needs` names them.
Shapes = Mapping[str, Shape]
#: ``(height, width)``.
Size = tuple[int, int]
#: ``{layer name: [row, C, H, W]}`` and, behind names that begin with ``_``, what belongs to rows.
Batch = dict[str, Tensor]


class FeatureSource(Protocol):
    """Feature rows of one split, as a head reads them.

    The store's `FeatureReader` is one over a snapshot, `heads.training.sources.TensorSource` one in
    memory. Rows keep their order: row i of `read` is image ``ids[i]``.
    """

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """``{layer name: (channels, height, width)}``."""

    @property
    def ids(self) -> list[str]:
        """SHA-256 of the image behind each row (a view's row has its image's id)."""

    @property
    def views(self) -> list[int]:
        """View number of each row: 0 is the plain image, 1.. are augmented copies."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order, each ``[row, C, H, W]`` float32."""

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield batches: in order where `seed` is None, else in the seed's shuffled order.

        The batch also carries ``"_rows"``: int64 row numbers.
        """

    def release(self) -> None:
        """Let go of rows held for the epochs to come; whatever is asked for is read again."""


@dataclass(frozen=True)
class HeadConfig:
    """Settings every head has. Subclass per head; every field must be JSON-ready.

    Parameters
    ----------
    nodes
        Backbone nodes by module name; empty leaves the choice to the head.
    seed
        Seeds weights, permutations, order of batches.
    """

    nodes: tuple[str, ...] = ()
    seed: int = 0
    #: Later settings, and where they change nothing: there, what was trained before is found.
    LATER: ClassVar[dict[str, Any]] = {}


@dataclass(frozen=True)
class Reference:
    """What a head is measured at: its paper's backbone and the maps that it gives.

    Parameters
    ----------
    backbone, pixels
        timm name (empty where the head reads images) and side of the square image.
    shapes
        ``{layer: (C, H, W)}`` there.
    settings
        Over the head's defaults.
    """

    backbone: str
    pixels: int
    shapes: Mapping[str, Shape]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Raw anomaly scores of a batch, larger is more anomalous; neither depends on the batch.

    Parameters
    ----------
    image
        ``[B]`` float32.
    maps
        ``[B, H, W]`` float32 at the size of the head's `map_size`.

    Examples
    --------
    >>> maps = torch.tensor([[[0.0, 3.0]], [[1.0, 0.5]]])
    >>> Scores(image=maps.amax((1, 2)), maps=maps).image
    tensor([3., 1.])
    """

    image: Tensor
    maps: Tensor


class Progress(Protocol):
    """Receives what a training has to tell."""

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Take a figure of an epoch (1-based). After a resume, earlier epochs are told again."""

    def step(self, done: int, total: int, text: str) -> None:
        """Take the number of steps done; time left is the receiver's business."""


class NullProgress:
    """Drops everything."""

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Drop it."""

    def step(self, done: int, total: int, text: str) -> None:
        """Drop it."""


@dataclass(frozen=True)
class TrainOptions:
    """How a training is run; nothing here says what is learnt (but `epochs`).

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda[:n]``.
    precision
        Of the subnets; ``auto``: bfloat16 where there is it. Losses and scores are float32 always.
    threads
        Torch threads; None leaves them as they are.
    checkpoint_dir
        Where checkpoints go; None writes none.
    epochs
        Overrides the head's own number.
    early_stop
        Stop after so many epochs without a better held-out likelihood, keep the best; None: do not.
    checkpoint_every
        Seconds between checkpoints (whole epochs only); 0 saves after every epoch.
    """

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    checkpoint_dir: Path | None = None
    epochs: int | None = None
    early_stop: int | None = None
    checkpoint_every: float = 30.0


class Training(NamedTuple):
    """All that one training is given."""

    #: Normal images (and their views where the head asked for them).
    train: FeatureSource
    #: Normal images that are not trained on: for validation and choices (`Head.chooses`), or none.
    held_out: FeatureSource
    #: How it is run, and who is told of it.
    options: TrainOptions
    progress: Progress


class Head(nn.Module):
    """A detector over stored features.

    Life: ``Head(config, shapes, map_size)`` → `fit` → `score`. `state_dict` holds all that was
    learnt, buffers included, so that ``Head(...).load_state_dict(...)`` scores the same.
    A subclass gives `needs`, `learn` and `scored`, around which `fit` and `score` check what is
    asked. Whether it has learnt is in a buffer ``fitted``, where it has one, or in `is_fitted`.

    Parameters
    ----------
    config
        An instance of `Config`.
    shapes
        ``{layer name: (C, H, W)}`` of the layers that `needs` named, in that order.
    map_size
        ``(height, width)`` of the anomaly maps: the extractor's input size.
    """

    name: ClassVar[str]
    Config: ClassVar[type[HeadConfig]] = HeadConfig
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    #: In words, which maps it needs: what a backbone must have.
    reads: ClassVar[str] = ""
    reference: ClassVar[Reference | None] = None
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: Whether it reads pairs: `fit` takes `heads.pairs.source.PairSource`s, `score` their batches.
    pairs: ClassVar[bool] = False
    #: Learns from masks and scores with probabilities; otherwise from what is normal alone.
    labelled: ClassVar[bool] = False
    #: Learns what is normal at each position: of tiles, whose positions mean nothing, it cannot.
    by_position: ClassVar[bool] = False

    def __init__(self, config: HeadConfig, shapes: Shapes, map_size: Size) -> None:
        super().__init__()
        self.config, self.shapes, self.map_size = config, dict(shapes), map_size

    @classmethod
    @abstractmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: Size) -> Needs:
        """Return what the head reads of this backbone where the run's image size is `resize`.

        Raises `ConfigError` where the backbone has no fitting maps.
        """

    @staticmethod
    def reads_images(config: HeadConfig) -> bool:
        """Whether it learns its own encoder: batches then carry images, not stored features."""
        return False

    def fit(
        self,
        train: FeatureSource,
        held_out: FeatureSource,
        options: TrainOptions,
        progress: Progress,
    ) -> dict[str, float]:
        """Learn from normal images; return final training figures.

        See `Training` for what is given. `ShapeError` where the maps are not the head's.
        """
        self.check(train)
        self.check(held_out)
        began = time.perf_counter()
        figures = self.learn(Training(train, held_out, options, progress))
        self.mark_fitted()
        return {**figures, "fit_seconds": time.perf_counter() - began}

    def chooses(self, options: TrainOptions) -> bool:
        """Whether held-out images choose something: an epoch, factors."""
        return options.early_stop is not None

    @abstractmethod
    def learn(self, training: Training) -> dict[str, float]:
        """Learn from sources of the right shapes; return final training figures."""

    @torch.no_grad()
    def score(self, batch: Batch) -> Scores:
        """Score a batch of maps, each row alone, or raise as `check_ready` does.

        Where an image is not looked at, its map has the lowest value that it has elsewhere.
        """
        self.check_ready(batch)
        own = next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0))
        given = {k: batch[k].to(own.device) for k in (*self.batch_shapes, LOOKED) if k in batch}
        with looking(given):
            found = self.scored(given)
            return dataclasses.replace(found, maps=quiet_outside(found.maps))

    @abstractmethod
    def scored(self, batch: Batch) -> Scores:
        """Score maps that were checked and are on the head's device."""

    @property
    def is_fitted(self) -> bool:
        """Whether it has learnt."""
        return "fitted" not in self._buffers or bool(self.get_buffer("fitted"))

    def mark_fitted(self) -> None:
        """Say, in the saved state too, that the head may score."""
        if "fitted" in self._buffers:
            self.get_buffer("fitted").fill_(True)

    def check_ready(self, batch: Batch) -> None:
        """Raise `NotFittedError`, `ShapeError` or, of NaN and the like, `FeatureRangeError`."""
        if not self.is_fitted:
            raise NotFittedError.of(self.name)
        self.check(batch)
        check_finite({k: batch[k] for k in self.batch_shapes}, self.name)

    @property
    def batch_shapes(self) -> dict[str, Shape]:
        """Shape of each entry of a batch that is read, without the rows: those of the layers."""
        return self.shapes

    def check(self, batch: Mapping[str, Tensor] | FeatureSource) -> None:
        """Raise `ShapeError` where the maps are not those this head was built for."""
        found: Mapping[str, Any] = (
            {k: x.shape[1:] for k, x in batch.items()}
            if isinstance(batch, Mapping)
            else batch.shapes
        )
        for name, want in self.batch_shapes.items():
            if name not in found:
                raise self.without(name)
            if tuple(found[name]) != tuple(want):
                raise ShapeError(
                    f"{self.name}: layer {name!r} has maps of shape {tuple(found[name])}",
                    expected=f"{tuple(want)}, what the head was built for",
                    remedy="use the extractor settings that the head was trained with",
                )

    def without(self, name: str) -> ShapeError:
        """Return the error of a batch that has no entry `name`."""
        return ShapeError(
            f"{self.name}: layer {name!r} is not in the batch",
            expected=f"layers {', '.join(self.shapes)}",
            remedy="extract with this head among --heads",
        )

    @property
    def score_limit(self) -> float | None:
        """What no image score of the fitted head can exceed; None where there is no such value."""
        return None

    @property
    def map_limit(self) -> float | None:
        """The same of its maps."""
        return None

    def parameters_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


H = TypeVar("H", bound=type[Head])
REGISTERED: dict[str, type[Head]] = {}


def register(cls: H) -> H:
    """Make a head known under its `name`; `ConfigError` where it is taken or no part of names."""
    if not cls.name.replace("_", "").isalnum():
        raise ConfigError(f"head name {cls.name!r}", expected="letters, digits and _")
    old = REGISTERED.get(cls.name, cls)
    if (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(
            f"head {cls.name!r} of {cls.__module__}",
            expected=f"another name: {old.__module__} has a head of this one",
        )
    REGISTERED[cls.name] = cls
    return cls


def check_finite(batch: Mapping[str, Tensor], name: str, ids: Sequence[str] | None = None) -> None:
    """Raise `FeatureRangeError` naming layer and image where features are NaN or infinite.

    Not of keys that begin with ``_``. `name` is who asks, `ids` the image of each row of the
    *source*: with the batch's ``_rows`` it names the image.

    Examples
    --------
    >>> check_finite({"layer3": torch.tensor([[1.0], [torch.nan]])}, "my_head")
    Traceback (most recent call last):
    headwater.errors.FeatureRangeError: my_head: layer 'layer3' has NaN ... features (row 1)
    ...
    """
    for layer, maps in batch.items():
        if layer.startswith("_"):
            continue
        # One pass: a sum is finite where all is (float64 cannot overflow from float32 maps).
        good = torch.isfinite(maps.sum(dim=tuple(range(1, maps.ndim)), dtype=torch.float64))
        if bool(good.all()):
            continue
        rows = (~good).nonzero().flatten().tolist()
        at = batch["_rows"].tolist() if "_rows" in batch else None
        who = ", ".join(ids[at[r]][:12] if ids is not None and at else f"row {r}" for r in rows[:5])
        raise FeatureRangeError(
            f"{name}: layer {layer!r} has NaN or infinite features ({who})",
            expected="finite numbers",
            remedy="extract these images again, in float32 if they were extracted in bfloat16",
        )
