"""Everything that can be set, each setting once: type, limits, default, help and sources.

The command line, `headwater.yaml` and its template, the environment, the keywords of the Python
front door and the page docs/settings.md all follow from the fields here. A new setting is a field.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator
from pydantic.fields import FieldInfo

from flows.runtime.values import (
    MIN_PIXELS,
    Combined,
    Costs,
    Device,
    Heads,
    LayoutName,
    Pixels,
    PlainAddress,
    Precision,
    SecretAddress,
    Seeds,
    TimmOptions,
    ValueRange,
)
from headwater.spec import DEFAULT_BACKBONE, DEFAULT_SIZE, Fitting

DEFAULT_HEADS = ("patchcore", "f2r", "cs_flow")
DEFAULT_PAIR_HEADS = ("pair_diff",)
#: Stands for the default of what an image set remembers.
LAST = "the set's last"

# Groups of commands, as `flows.command.options.takes` names them.
_JOB = ("run", "extract", "train")
_IMAGES = ("run", "extract")
_TRAIN = ("run", "train")
_RETRAIN = ("retrain",)
_BACKBONE = (*_JOB, "repair")
_EVERY = (*_JOB, "store", "models", "demo", "backbones")
_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_PIXELS = f"pixels >= {MIN_PIXELS}, or HxW"


def _set(default: Any, text: str, groups: tuple[str, ...] = (), **more: Any) -> Any:
    """Return a field of this default and help; `more` are limits and the rest of `Setting`."""
    limits = {key: more.pop(key) for key in _LIMITS if key in more}
    extra = {"groups": groups, **more}
    return Field(default, description=text, json_schema_extra=extra, **limits)


class _Places(dict[str, str]):
    """Where settings were given, for messages alone: it makes no two settings different."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_bool_is_a_number(cls, value: Any, validate: Any, info: Any) -> Any:
        """Yes would be 1: what YAML makes of a word is no number."""
        kind = cls.model_fields[info.field_name].annotation
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        if isinstance(value, bool) and {int, float} & set(kinds):
            raise ValueError(f"a number, not {'yes' if value else 'no'} (true or false)")
        return validate(value)


# fmt: off
class BackboneSettings(_Frozen):
    """Which frozen network sees the images."""

    name: str = _set(
        DEFAULT_BACKBONE, "timm model name.", _BACKBONE, named="--backbone", kept=True,
        otherwise=f"the one that the weight file's name begins with, or {DEFAULT_BACKBONE}")
    weights: Path | None = _set(
        None, "Weight file (safetensors or .pth), or a folder of them.",
        (*_BACKBONE, "backbones"), kept=True,
        otherwise="HEADWATER_WEIGHTS, then an installed package's, then timm's download")
    options: TimmOptions = _set(
        {}, "For timm (pad_type=same), or stride_in_1x1=true, mean=0.5, std=0.5.", _BACKBONE,
        named="--backbone-option", words="KEY=VALUE", otherwise=LAST, kept=True)


class ExtractionSettings(_Frozen):
    """How images become features."""

    size: Pixels | None = _set(
        None, "Pixels to which images are resized: a side, or height x width.", _JOB,
        words=_PIXELS, otherwise="the head's own, or default_size", kept=True)
    default_size: Pixels = _set(
        DEFAULT_SIZE, "The same for heads that choose no size of their own.", words=_PIXELS,
        kept=True)
    crop: Pixels | None = _set(
        None, "Centre crop after that: a side, or height x width.", _JOB, words=_PIXELS,
        otherwise="none", kept=True)
    resize: Fitting | None = _set(
        None, "Other aspects than the size's: squash them, fit and pad, or crop the middle.", _JOB,
        otherwise="squash", kept=True)
    tile: int | None = _set(
        None, "Images are seen in square tiles of so many of their pixels a side; 0: whole.", _JOB,
        ge=0, kept=True)
    overlap: int | None = _set(
        None, "Pixels that neighbouring tiles share.", _JOB, ge=0,
        otherwise="an eighth of a tile", kept=True)
    scale: Literal["tiles", "both"] = _set(
        "tiles", "Seen at the scale of tiles alone, or the whole image, too.", _JOB, kept=True)
    roi: Path | None = _set(
        None, "Region of interest: a mask, white where to look; beside, where NAME_roi.png lies "
        "beside an image, or a folder of such; none takes it away.", _JOB, kept=True)
    range: ValueRange = _set(
        "auto", "Values that are black and white in images of more than 8 bits, LO:HI; auto: found "
        "on the normal training images; full: 0:65535, in steps of 8 bits.", _JOB,
        words="auto|full|LO:HI", otherwise="auto, once a set", kept=True)
    precision: Precision = _set(
        "auto", "Backbone arithmetic; auto: measured once a set and backbone.", _JOB)
    dtype: Literal["float16", "bfloat16", "float32"] = _set(
        "float16", "Number format of stored features.", kept=True)
    compression: Literal["none", "lz4", "zstd"] = _set("none", "Compression of stored features.")
    batch: int = _set(16, "Images a backbone call.", ge=1, le=4096)
    block_mb: int = _set(64, "Megabytes of features a commit.", ge=1, le=4096)
    workers: int | None = _set(
        None, "Local processes that extract.", ("extract",), ge=1, otherwise="this one")


class TrainingSettings(_Frozen):
    """How heads learn and how their thresholds are set."""

    preset: Literal["auto", "small", "paper"] = _set(
        "auto", "small: minutes on 2 cores; paper: as published; auto: paper with a GPU.", _JOB)
    device: Device = _set(
        "auto", "Where heads learn; auto: GPUs if any.", _TRAIN, words="auto|cpu|cuda|cuda:N")
    precision: Precision = _set("auto", "Arithmetic of training.")
    calibrate: Literal["folds", "quick"] = _set(
        "folds", "What thresholds are set by. folds: out-of-fold scores of all normals, by as many "
        "trainings more; quick: a share that is held out.", _TRAIN)
    folds: int = _set(5, "Folds of neighbours, for calibrate: folds.", ge=2, le=50)
    held_out: float | None = _set(
        None, "Share not trained on: for thresholds where calibrate is quick, for validation, for "
        "what a head chooses.", gt=0, le=0.5, otherwise="0.1; 0.2 of pairs")
    target_fpr: float = _set(
        0.05, "False-positive rate the threshold aims at.", _TRAIN, gt=0, lt=1)
    target_recall: float | None = _set(
        None, "Share of the known defects (val/KIND, --validation) that the threshold is to find, "
        "instead of a false-positive rate.", _TRAIN, gt=0, le=1)
    costs: Costs | None = _set(
        None, "Prices of a missed defect and of a false alarm: the threshold is the cheapest on "
        "known defects and out-of-fold normals.", _TRAIN, words="MISS:FALSE_ALARM")
    epochs: int | None = _set(
        None, "Epochs of heads that learn in epochs.", _TRAIN, ge=1, otherwise="the preset's")
    early_stop: int | None = _set(
        None, "Stop after so many epochs without a better held-out loss.", ge=1, otherwise="never")
    seed: int = _set(0, "Of weights, orders, splits.", _TRAIN)
    seeds: Seeds | None = _set(
        None, "Train with each of these seeds instead; compare tells their spread.", _TRAIN,
        words="N,N,...", otherwise="seed alone")
    workers: int | None = _set(
        None, "Heads trained at a time.", (*_TRAIN, "demo"), ge=1,
        otherwise="one a core, at most one a GPU")


class RetrainSettings(_Frozen):
    """What `headwater retrain` takes in, and what it puts in service."""

    guard: float = _set(
        0.01, "New normals that the model in service calls anomalous wait for a review where their "
        "p-value is up to this; of few normals, where it is the lowest there can be.", _RETRAIN,
        ge=0, lt=1)
    most_flagged: float = _set(
        0.25, "Share of a batch that may be called anomalous before all of it waits.",
        gt=0, le=1)
    most_moved: float = _set(
        0.25, "How far one batch may move the mean of what is learnt from, in units of its spread, "
        "before all of it waits.", gt=0)
    auroc_margin: float = _set(
        0.02, "Image AUROC that a challenger may lose on the locked test.", _RETRAIN, ge=0, lt=1)
    fpr_margin: float = _set(
        0.05, "False-positive rate that it may add on normals of the locked test.", _RETRAIN,
        ge=0, lt=1)
    recall_margin: float = _set(
        0.05, "Share of each kind of defect that it may lose.", _RETRAIN, ge=0, lt=1)
    max_ms: float | None = _set(
        None, "Milliseconds an image that it may take on this machine.", _RETRAIN, gt=0)
    max_mb: float | None = _set(
        None, "Megabytes of memory that it may take while it answers.", _RETRAIN, gt=0)


class DaskSettings(_Frozen):
    """Where extraction and trainings run."""

    scheduler: PlainAddress | None = _set(
        None, "Address of an existing Dask scheduler, as tcp://host:8786.", _JOB,
        otherwise="processes of this machine")


class Settings(_Frozen):
    """Everything that can be set."""

    image_set: str | None = _set(None, "Name of the image set; commands are given it.")
    images: Path | None = _set(
        None, "Folder in a known layout, as train/good, test/KIND, ground_truth/KIND "
        "(NAME_mask.png); or a list of images.", (*_IMAGES, "demo"), kept=True)
    layout: LayoutName | None = _set(
        None, "How the images are laid out (docs/images.md), where it is not seen.", _IMAGES,
        otherwise="auto: the first that fits", kept=True)
    normal: Path | None = _set(
        None, "Instead: plain folder of normal images.", _IMAGES, kept=True)
    defective: Path | None = _set(
        None, "Plain folder of defective images, only to evaluate.", _IMAGES, kept=True)
    masks: Path | None = _set(
        None, "Folder of NAME.png or NAME_mask.png, white where defective.", _IMAGES, kept=True)
    test_normal: Path | None = _set(
        None, "Folder of normal images to test with, apart from those trained on.", _IMAGES,
        kept=True)
    validation: Path | None = _set(
        None, "Folder of known defects to choose thresholds, rules and heads by, a subfolder a "
        "kind; never trained on, never tested.", _IMAGES, kept=True)
    test_list: Path | None = _set(
        None, "Of a list of images: another one, of those to test with.", _IMAGES, kept=True)
    list_root: Path | None = _set(
        None, "Of a list of images: folder that its paths and s3:// addresses are below.", _IMAGES,
        named="--root", otherwise="the list's folder", kept=True)
    links: Literal["inside", "anywhere"] | None = _set(
        None, "Where links among the images may lead: inside their folder alone, or anywhere.",
        _IMAGES, otherwise="inside", kept=True)
    pairs: Path | None = _set(
        None, "Instead: folder of pairs, train or test / current, history, mask.", _IMAGES,
        kept=True)
    heads: Heads = _set(
        {}, "Heads to train; in the file a list, or a mapping to their settings.", _JOB,
        words="HEAD,HEAD",
        otherwise=f"{','.join(DEFAULT_HEADS)}; of pairs {','.join(DEFAULT_PAIR_HEADS)}")
    combine: Combined | None = _set(
        None, "Join these heads of the run to one model more, SET.ensemble; all (as without a "
        "value): those that can be.", _TRAIN, words="all|HEAD,HEAD")
    backbone: BackboneSettings = Field(default_factory=BackboneSettings)
    extraction: ExtractionSettings = Field(default_factory=ExtractionSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    retrain: RetrainSettings = Field(default_factory=RetrainSettings)
    dask: DaskSettings = Field(default_factory=DaskSettings)
    home: Path = _set(
        Path("headwater-home"), "Folder of all state.", _EVERY,
        otherwise="HEADWATER_HOME, then ./headwater-home")
    store: PlainAddress | None = _set(
        None, "Feature store: a folder or s3://bucket/prefix.", (*_JOB, "store"),
        otherwise="in home")
    tracking: SecretAddress | None = _set(
        None, "MLflow tracking URI.", (*_TRAIN, "models"), otherwise="SQLite in home")
    artifacts: PlainAddress | None = _set(
        None, "Where MLflow's artifacts go without an MLflow server, as s3://bucket/prefix.",
        otherwise="in home")
# fmt: on

    _places: _Places = PrivateAttr(default_factory=_Places)

    def place(self, path: str) -> str:
        """Return the file and line, or the variable, that gave a value; empty for other sources.

        `path` is the value's key, dotted, keys of heads' settings included.
        """
        return self._places.get(path, "")

    def given_at(self, places: Mapping[str, str]) -> Settings:
        """Return these settings, which remember where values were given."""
        made = self.model_copy()
        made._places = _Places(places)
        return made


@dataclass(frozen=True)
class Setting:
    """One setting and all that is said of it anywhere.

    Parameters
    ----------
    path
        Its key in the file, dotted.
    field
        Its default, help and limits.
    groups
        The groups of commands that take it as an option; a command says which it is of.
    named
        Its option, where that is not named as the key is.
    otherwise
        In words, what holds where nothing is given and the field's own default does not tell.
    words
        Type and limits in words, where the field's type does not tell.
    kept
        Whether an image set remembers it from its last extraction.
    """

    path: str
    field: FieldInfo
    groups: tuple[str, ...]
    named: str = ""
    otherwise: str = ""
    words: str = ""
    kept: bool = False

    @property
    def option(self) -> str:
        """Its option on the command line; empty where it has none."""
        named = self.named or "--" + self.path.rpartition(".")[2].replace("_", "-")
        return named if self.groups else ""

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return "HEADWATER_" + self.path.upper().replace(".", "__")

    @property
    def keyword(self) -> str:
        """Its name in Python: the option's, or else the key's with its section."""
        return self.option.lstrip("-").replace("-", "_") or self.path.replace(".", "_")

    @property
    def type(self) -> Any:
        """Its type, without None."""
        kind = self.field.annotation
        union = get_origin(kind) in (Union, types.UnionType)
        return next(k for k in get_args(kind) if k is not type(None)) if union else kind

    @property
    def kind(self) -> str:
        """Type and limits in words."""
        name = {int: "integer", float: "number", Path: "path"}.get(self.type, "text")
        if get_origin(self.type) is Literal:
            name = "|".join(get_args(self.type))
        limits = (
            f"{sign} {getattr(limit, key):g}"
            for limit in self.field.metadata
            for key, sign in _LIMITS.items()
            if hasattr(limit, key)
        )
        return self.words or f"{name} {', '.join(limits)}".strip()

    @property
    def default(self) -> str:
        """What holds where nothing is given, in words."""
        if self.otherwise or self.field.default is not None:
            return self.otherwise or str(self.field.default)
        return LAST if self.kept else "none"


@cache
def every_setting() -> tuple[Setting, ...]:
    """Return all settings, in the order of the file."""
    return tuple(_walk(Settings, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        section: Any = field.annotation
        extra: Any = field.json_schema_extra
        if extra is None:
            yield from _walk(section, f"{name}.")
        else:
            yield Setting(prefix + name, field, **extra)


def chosen_heads(settings: Settings, pairs: bool) -> dict[str, dict[str, Any]]:
    """Return the heads asked for, each with its settings, or the default ones of such a set."""
    return settings.heads or {name: {} for name in (DEFAULT_PAIR_HEADS if pairs else DEFAULT_HEADS)}


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return the settings with `values`, by their paths, in place of theirs, not checked again."""
    own: dict[str, Any] = {}
    for path, value in values.items():
        section, dot, key = path.rpartition(".")
        if dot:
            before = own.get(section, getattr(settings, section))
            own[section] = before.model_copy(update={key: value})
        else:
            own[key] = value
    return settings.model_copy(update=own)
