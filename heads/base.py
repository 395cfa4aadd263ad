"""The contract of a head, the registry, and the form in which features reach it.

A head is one file and a registration::

    @register
    class MyHead(Head): ...

It never opens a store: it is given `FeatureSource`s. Heads of other packages are found by their
entry points of the group `PLUGINS` (docs/adding-a-head.md).
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from headwater.errors import ConfigError, ShapeError
from headwater.spec import BackboneInfo, Needs

if TYPE_CHECKING:
    from heads.trainer import Progress, TrainOptions

Shape = tuple[int, int, int]
Batch = dict[str, Tensor]


class FeatureSource(Protocol):
    """Feature rows of one split, as a head reads them.

    `storage.reader.FeatureReader` is one over a store's snapshot; `heads.data.TensorSource` one in
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
    """

    image: Tensor
    maps: Tensor


class Head(nn.Module):
    """A detector over stored features.

    Life: ``Head(config, shapes, map_size)`` → `fit` → `score`. `state_dict` holds all that was
    learnt, buffers included, so that ``Head(...).load_state_dict(...)`` scores the same.

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
    #: Whether it reads pairs: `fit` takes `heads.pairs.PairSource`s, `score` their batches.
    pairs: ClassVar[bool] = False
    #: Learns from masks and scores with probabilities; otherwise from what is normal alone.
    labelled: ClassVar[bool] = False

    def __init__(
        self, config: HeadConfig, shapes: Mapping[str, Shape], map_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config, self.shapes, self.map_size = config, dict(shapes), map_size

    @classmethod
    @abstractmethod
    def needs(cls, config: HeadConfig, backbone: BackboneInfo, resize: tuple[int, int]) -> Needs:
        """Return what the head reads of this backbone where the run's image size is `resize`.

        Raises `ConfigError` where the backbone has no fitting maps.
        """

    @staticmethod
    def reads_images(config: HeadConfig) -> bool:
        """Whether it learns its own encoder: batches then carry images, not stored features."""
        return False

    @abstractmethod
    def fit(
        self,
        train: FeatureSource,
        held_out: FeatureSource,
        options: TrainOptions,
        progress: Progress,
    ) -> dict[str, float]:
        """Learn from normal images; return final training figures.

        Parameters
        ----------
        train
            Normal images (and their views where the head asked for them).
        held_out
            Normal images that are not trained on: validation, calibration of normalisers.
        options
            Device, precision, checkpoint folder, threads.
        progress
            Receives ``metric(name, value, epoch)`` and ``step(done, total, text)``.
        """

    @abstractmethod
    def score(self, batch: Batch) -> Scores:
        """Score a batch of feature maps. Each row's score depends on that row alone."""

    def check(self, batch: Mapping[str, Tensor] | FeatureSource) -> None:
        """Raise `ShapeError` where the maps are not those this head was built for."""
        shapes = (
            {k: tuple(v.shape[1:]) for k, v in batch.items() if not k.startswith("_")}
            if isinstance(batch, Mapping)
            else dict(batch.shapes)
        )
        for layer, want in self.shapes.items():
            got = shapes.get(layer)
            if got is None:
                raise ShapeError(
                    f"{self.name}: layer {layer!r} is not in the batch",
                    expected=f"layers {', '.join(self.shapes)}",
                    remedy="extract with this head among --heads",
                )
            if tuple(got) != tuple(want):
                raise ShapeError(
                    f"{self.name}: layer {layer!r} has maps of shape {tuple(got)}",
                    expected=f"{tuple(want)}, what the head was built for",
                    remedy="use the extractor settings that the head was trained with",
                )

    @property
    def score_limit(self) -> float | None:
        """What no image score of the fitted head can exceed; None where there is no such value."""
        return None

    def parameters_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


H = TypeVar("H", bound=type[Head])
_REGISTRY: dict[str, type[Head]] = {}
#: Entry point group of the heads of other packages.
PLUGINS = "headwater.heads"


def register(cls: H) -> H:
    """Class decorator: make a head known under its `name`.

    Raises
    ------
    ConfigError
        Where the name is taken or cannot be part of a model's name.
    """
    if not cls.name.replace("_", "").isalnum():
        raise ConfigError(f"head name {cls.name!r}", expected="letters, digits and _")
    old = _REGISTRY.get(cls.name, cls)
    if (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(
            f"head {cls.name!r} of {cls.__module__}",
            expected=f"another name: {old.__module__} has a head of this one",
        )
    _REGISTRY[cls.name] = cls
    return cls


def registry() -> dict[str, type[Head]]:
    """Return all heads by name, in order of name; those of other packages too."""
    import heads.catalogue  # noqa: F401  the imports there register

    broken_plugins()
    return dict(sorted(_REGISTRY.items()))


@functools.cache
def broken_plugins() -> dict[str, str]:
    """Import the heads of other packages; return why some cannot be, by entry point name.

    A package that is broken must not keep the other heads from working.
    """
    broken = {}
    for entry in entry_points(group=PLUGINS):
        try:
            entry.load()
        except Exception as error:  # whatever a foreign module raises while it is imported
            place = f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value
            why = str(error).splitlines()[0] if str(error) else ""
            broken[entry.name] = f"{place}: {type(error).__name__}: {why}"
    return broken


def get_head(name: str) -> type[Head]:
    """Return a head's class; `ConfigError` with the valid names where there is none."""
    known = registry()
    if name not in known:
        if name in broken_plugins():
            raise ConfigError(
                f"head {name!r} cannot be imported from {broken_plugins()[name]}",
                remedy="mend or uninstall that package",
            )
        raise ConfigError(
            f"unknown head {name!r}",
            expected="one of " + ", ".join(known),
            remedy="a head of another package must be installed wherever it is used",
        )
    return known[name]


def make_config(name: str, settings: Mapping[str, Any], preset: str | None = None) -> HeadConfig:
    """Build a head's configuration from plain settings over a preset.

    Raises `ConfigError` that names the setting and the valid ones.
    """
    cls = get_head(name)
    if preset is not None and preset not in cls.presets and preset != "paper":
        raise ConfigError(
            f"preset {preset!r} of head {name}",
            expected="one of " + ", ".join(["paper", *cls.presets]),
        )
    values: dict[str, Any] = {**cls.presets.get(preset or "", {}), **settings}
    fields = {f.name: f for f in dataclasses.fields(cls.Config)}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"setting {key!r} of head {name}", expected="one of " + ", ".join(sorted(fields))
            )
        if isinstance(value, list):
            values[key] = tuple(value)
    defaults = cls.Config()
    for key in settings:
        # Some settings take a number or a word (`run`), and say so by their type.
        if not (isinstance(values[key], str) and "str" in str(fields[key].type)):
            _check_type(name, key, values[key], getattr(defaults, key))
    try:
        return cls.Config(**values)
    except ConfigError as error:
        raise ConfigError(
            f"head {name}: {error.culprit}", expected=error.expected, remedy=error.remedy
        ) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings of head {name}: {error}") from error


def _check_type(head: str, key: str, value: Any, default: Any) -> None:
    """Raise `ConfigError` where a value is not of the kind of the setting's default."""
    if default is None or value is None:
        return
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a text"),
        tuple: ((tuple,), "a list, such as [1, 2]"),
    }
    allowed, said = kinds.get(type(default), ((object,), ""))
    wrong = isinstance(value, bool) and not isinstance(default, bool)
    # Some settings take a number or a word (`auto`): a text default accepts both.
    if isinstance(default, str) and isinstance(value, (int, float)) and not wrong:
        return
    if wrong or not isinstance(value, allowed):
        raise ConfigError(
            f"setting {key} = {value!r} of head {head}",
            expected=f"{said}; its default is {default!r}",
        )


def device_of(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu`` or ``cuda[:n]``.

    On a GPU, float32 is made to mean float32 from here on: cuDNN's convolutions would round to
    TF32's 10 bits by default, which is neither what a score nor what an inverse may be.

    Raises
    ------
    ConfigError
        Another name, or a GPU where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}", expected="auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here",
                expected="auto, cpu or a GPU that is there",
            )
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device
