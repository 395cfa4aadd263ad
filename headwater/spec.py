"""Specifications: what is to be seen, in a form that can be compared, hashed and stored.

All are frozen dataclasses. `canonical` gives the one JSON text of a specification; its SHA-256,
cut to 16 hexadecimal digits, is the specification's id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from headwater.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
StoredDtype = Literal["float16", "bfloat16", "float32"]
#: How an image of another shape than the size is brought to it; see `headwater.geometry.place`.
Fitting = Literal["squash", "fit", "crop"]

#: Pixels a side to which images are resized where neither the user nor a head says otherwise.
DEFAULT_SIZE = 256
#: timm's name of the backbone of new sets where none is named: its weights come with Headwater.
DEFAULT_BACKBONE = "tf_efficientnet_lite0"
#: Sides of a pair of images: a place now, and before. In the store each is an image set of its own.
SIDES = ("current", "history")

_POOL = re.compile(r"^(mean|avg)(\d+)(?:s(\d+))?$")


def canonical(value: Any) -> str:
    """Return the canonical JSON of a dataclass, mapping or sequence: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields; one of `ExtractorSpec`'s that came later only where it says."""
    fields = dataclasses.asdict(value)
    later = value.LATER if isinstance(value, ExtractorSpec) else {}
    return {k: v for k, v in fields.items() if k not in later or v != later[k]}


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `canonical(value)`.

    >>> digest({"b": 1, "a": (2, 3)}) == digest({"a": [2, 3], "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


@dataclass(frozen=True, order=True)
class LayerSpec:
    """One stored array: which backbone nodes, at which image scale, fused and pooled how.

    The text form, which is also the array's name in the store, is
    ``node[+node...][@scale][~op...]``: ``layer3``, ``layer3@0.5``, ``layer2+layer3~mean3``,
    ``blocks.6+blocks.10~norm~sum``, ``layer1~avg3s2``.

    Parameters
    ----------
    nodes
        Module names of the backbone (``backbone.get_submodule(name)``), in order.
    scale
        Image scale of a pyramid: 1, 0.5, 0.25. The preprocessed image is resized by it.
    pool
        ``""``, ``"meanK"`` (KxK mean, stride 1, same size, borders not counted) or ``"avgKsS"``
        (KxK mean, stride S, padding K // 2, borders counted as zeros). With several nodes each
        map is pooled before fusing.
    fuse
        ``"concat"`` (channels of all nodes, maps resized bilinearly to the first) or ``"sum"``.
    norm
        The tokens of the last node pass through the vision transformer's final norm (the module
        ``norm``, with its weights) before pooling and fusing.
    """

    nodes: tuple[str, ...]
    scale: float = 1.0
    pool: str = ""
    fuse: str = "concat"
    norm: bool = False

    def __post_init__(self) -> None:
        if not self.nodes or not all(re.fullmatch(r"[A-Za-z0-9_.]+", n) for n in self.nodes):
            raise ConfigError(
                f"layer nodes {self.nodes!r}", expected="module names such as layer2 or blocks.5"
            )
        if not 0 < self.scale <= 4:
            raise ConfigError(f"layer scale {self.scale}", expected="a number in (0, 4]")
        if self.pool and not _POOL.match(self.pool):
            raise ConfigError(f"layer pooling {self.pool!r}", expected="mean3, avg3s2 or nothing")
        if self.fuse not in ("concat", "sum"):
            raise ConfigError(f"layer fusion {self.fuse!r}", expected="concat or sum")

    @property
    def name(self) -> str:
        """The text form."""
        text = "+".join(self.nodes)
        if self.scale != 1.0:
            text += f"@{self.scale:g}"
        if self.pool:
            text += f"~{self.pool}"
        if self.norm:
            text += "~norm"
        if self.fuse == "sum" and len(self.nodes) > 1:
            text += "~sum"
        return text

    @classmethod
    def parse(cls, text: str) -> LayerSpec:
        """Read the text form; raises `ConfigError` where it is none.

        >>> layer = LayerSpec.parse("layer2+layer3@0.5~mean3")
        >>> layer.nodes, layer.scale, layer.pooling
        (('layer2', 'layer3'), 0.5, ('mean', 3, 1))
        >>> layer.name
        'layer2+layer3@0.5~mean3'
        """
        head, *ops = text.strip().split("~")
        nodes, _, scale = head.partition("@")
        try:
            number = float(scale) if scale else 1.0
        except ValueError:
            raise ConfigError(f"layer {text!r}", expected="a number after @") from None
        fuse = "sum" if "sum" in ops else "concat"
        pools = [o for o in ops if o not in ("sum", "concat", "norm")]
        if len(pools) > 1:
            raise ConfigError(f"layer {text!r}", expected="at most one pooling")
        return cls(tuple(nodes.split("+")), number, pools[0] if pools else "", fuse, "norm" in ops)

    @property
    def pooling(self) -> tuple[str, int, int] | None:
        """``(kind, kernel, stride)`` of the pooling, or None."""
        m = _POOL.match(self.pool)
        return (m[1], int(m[2]), int(m[3] or 1)) if m else None


@dataclass(frozen=True)
class ViewSpec:
    """Seeded augmented copies of an image, stored beside the plain one.

    View k (1-based) of an image is determined by its SHA-256, `seed` and k alone.

    Parameters
    ----------
    count
        Views per image.
    rotation
        Rotation angles are drawn uniformly from ``[-rotation, rotation]`` degrees.
    flip
        Whether horizontal and vertical flips are drawn too.
    seed
        Another seed is another extractor.
    """

    count: int = 4
    rotation: float = 30.0
    flip: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TileSpec:
    """Square tiles of an image instead of the image; see `headwater.tiles` for where they lie.

    Parameters
    ----------
    edge
        Side of a tile, pixels of the image. Each tile is brought to the size as an image would be.
    overlap
        Pixels that neighbours share, at the least.
    scale
        Whether the whole image is seen too, beside its tiles.

    Raises
    ------
    ConfigError
        Tiles that are none, or that do not move on.
    """

    edge: int
    overlap: int = 0
    scale: bool = False

    def __post_init__(self) -> None:
        if self.edge < 1 or not 0 <= self.overlap < self.edge:
            raise ConfigError(
                f"tiles of {self.edge} pixels, {self.overlap} of them shared with the next",
                expected="an overlap of 0 pixels or more, and of less than the tile has",
            )


def seed_of_untrained(weights: str) -> int | None:
    """Return the seed of an untrained net from an `ExtractorSpec.weights`; None for real ones."""
    kind, _, seed = weights.partition(":")
    return int(seed) if kind == "untrained" else None


@dataclass(frozen=True)
class ExtractorSpec:
    """Everything that decides what a stored feature is, except which layers are stored.

    Two feature arrays may be mixed only if their `ExtractorSpec` is equal. The layers are kept
    out so that one more layer does not make the stored ones worthless; `extractor_id` puts them in.

    Parameters
    ----------
    backbone
        timm model name.
    weights
        SHA-256 of the weight file, or ``"untrained:<seed>"``.
    options
        Sorted ``(name, JSON value)`` pairs given to timm (``pad_type``, ``bn_eps``...).
    resize
        Images are resized to this ``(height, width)`` in pixels.
    crop
        Centre crop after the resize, ``(height, width)``, or None.
    mean, std
        Per-channel normalisation of the [0, 1] image.
    interpolation
        Resampling filter of the resize.
    precision
        Arithmetic of the backbone.
    dtype
        Stored dtype.
    views
        None for the plain images; otherwise the rows are the views 1..count.
    fitting
        How images of another aspect are brought to `resize`; see `headwater.geometry.place`.
    region
        SHA-256 of the mask outside of which pixels are blanked and nothing counts; none where
        empty.
    value_range
        Values that are black and white in images of more than 8 bits (`features.images.depth`);
        None reads them as 8 bits.
    tiles
        What is seen of an image are tiles of it; None for the image itself.

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(256, 256), crop=(224, 224))
    >>> spec.input_size, spec.id
    ((224, 224), 'aa344f100e93296b')
    >>> ExtractorSpec.from_json(spec.to_json()) == spec
    True
    """

    backbone: str
    weights: str
    options: tuple[tuple[str, Any], ...] = ()
    resize: tuple[int, int] = (DEFAULT_SIZE, DEFAULT_SIZE)
    crop: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    precision: Precision = "float32"
    dtype: StoredDtype = "float16"
    views: ViewSpec | None = None
    fitting: Fitting = "squash"
    region: str = ""
    value_range: tuple[float, float] | None = None
    tiles: TileSpec | None = None

    #: What specifications meant that lack a field: where it means that, it is not in their JSON,
    #: so that their ids stay.
    LATER: ClassVar[dict[str, Any]] = {
        "fitting": "squash", "region": "", "value_range": None, "tiles": None,
    }  # fmt: skip

    @property
    def id(self) -> str:
        """16 hexadecimal digits; names the group in the store."""
        return digest(self)

    @property
    def input_size(self) -> tuple[int, int]:
        """``(height, width)`` of what the backbone sees at scale 1."""
        return self.crop or self.resize

    def extractor_id(self, layers: tuple[LayerSpec, ...]) -> str:
        """Return the id of these settings together with these layers (order does not matter)."""
        return digest({"spec": self.to_json(), "layers": sorted(x.name for x in layers)})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""
        return json.loads(canonical(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExtractorSpec:
        """Rebuild a specification from `to_json`'s mapping."""

        def freeze(x: Any) -> Any:
            return tuple(freeze(v) for v in x) if isinstance(x, list) else x

        values = {k: freeze(v) for k, v in data.items()}
        if data.get("views") is not None:
            values["views"] = ViewSpec(**data["views"])
        if data.get("tiles") is not None:
            values["tiles"] = TileSpec(**data["tiles"])
        return cls(**values)


@dataclass(frozen=True)
class BackboneInfo:
    """What a head may ask of a backbone before anything is extracted.

    All of it is read from the running net, never from a table.

    Parameters
    ----------
    name
        timm model name.
    stages
        Module names of the stage outputs whose weights are at hand, shallow to deep.
    channels, strides
        Per stage.
    tokens
        Whether nodes give patch tokens (a vision transformer), reshaped to maps when stored.
    depth
        Number of transformer blocks (``blocks.0`` ... ``blocks.<depth-1>``), 0 otherwise.
    """

    name: str
    stages: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    tokens: bool = False
    depth: int = 0


@dataclass(frozen=True)
class Needs:
    """What a head reads: layers of an extractor and, if any, views.

    Parameters
    ----------
    layers
        The arrays, in the head's own order; batches carry them under ``layer.name``.
    resize, crop
        Image size this head wants; None leaves it to the run.
    views
        Views that the head trains on beside the plain images, or None.
    """

    layers: tuple[LayerSpec, ...]
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    views: ViewSpec | None = None
