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

from pydantic import BaseModel, Field, PrivateAttr
from pydantic.fields import FieldInfo

from flows.runtime.sections import (
    LIMITS,
    HookSettings,
    KeepSettings,
    RetrainSettings,
    ScheduleSettings,
    Section,
    ServeSettings,
    setting,
)
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
_BACKBONE = (*_JOB, "repair")
_EVERY = (*_JOB, "store", "models", "demo", "backbones")
_PIXELS = f"pixels >= {MIN_PIXELS}, or HxW"


class _Places(dict[str, str]):
    """Where settings were given, for messages alone: it makes no two settings different."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


# fmt: off
class BackboneSettings(Section):
    """Which frozen network sees the images."""

    name: str = setting(
        DEFAULT_BACKBONE, "timm model name.", _BACKBONE, named="--backbone", kept=True,
        otherwise=f"the one that the weight file's name begins with, or {DEFAULT_BACKBONE}")
    weights: Path | None = setting(
        None, "Weight file (safetensors or .pth), or a folder of them.",
        (*_BACKBONE, "backbones"), kept=True,
        otherwise="HEADWATER_WEIGHTS, then an installed package's, then timm's download")
    options: TimmOptions = setting(
        {}, "For timm (pad_type=same), or stride_in_1x1=true, mean=0.5, std=0.5.", _BACKBONE,
        named="--backbone-option", words="KEY=VALUE", otherwise=LAST, kept=True)


class ExtractionSettings(Section):
    """How images become features."""

    size: Pixels | None = setting(
        None, "Pixels to which images are resized: a side, or height x width.", _JOB,
        words=_PIXELS, otherwise="the head's own, or default_size", kept=True)
    default_size: Pixels = setting(
        DEFAULT_SIZE, "The same for heads that choose no size of their own.", words=_PIXELS,
        kept=True)
    crop: Pixels | None = setting(
        None, "Centre crop after that: a side, or height x width.", _JOB, words=_PIXELS,
        otherwise="none", kept=True)
    resize: Fitting | None = setting(
        None, "Other aspects than the size's: squash them, fit and pad, or crop the middle.", _JOB,
        otherwise="squash", kept=True)
    tile: int | None = setting(
        None, "Images are seen in square tiles of so many of their pixels a side; 0: whole.", _JOB,
        ge=0, kept=True)
    overlap: int | None = setting(
        None, "Pixels that neighbouring tiles share.", _JOB, ge=0,
        otherwise="an eighth of a tile", kept=True)
    scale: Literal["tiles", "both"] = setting(
        "tiles", "Seen at the scale of tiles alone, or the whole image, too.", _JOB, kept=True)
    roi: Path | None = setting(
        None, "Region of interest: a mask, white where to look; beside, where NAME_roi.png lies "
        "beside an image, or a folder of such; none takes it away.", _JOB, kept=True)
    range: ValueRange = setting(
        "auto", "Values that are black and white in images of more than 8 bits, LO:HI; auto: found "
        "on the normal training images; full: 0:65535, in steps of 8 bits.", _JOB,
        words="auto|full|LO:HI", otherwise="auto, once a set", kept=True)
    precision: Precision = setting(
        "auto", "Backbone arithmetic; auto: measured once a set and backbone.", _JOB)
    dtype: Literal["float16", "bfloat16", "float32"] = setting(
        "float16", "Number format of stored features.", kept=True)
    compression: Literal["none", "lz4", "zstd"] = setting("none", "Compression of stored features.")
    batch: int = setting(16, "Images a backbone call.", ge=1, le=4096)
    block_mb: int = setting(64, "Megabytes of features a commit.", ge=1, le=4096)
    workers: int | None = setting(
        None, "Local processes that extract.", ("extract",), ge=1, otherwise="this one")


class TrainingSettings(Section):
    """How heads learn and how their thresholds are set."""

    preset: Literal["auto", "small", "paper"] = setting(
        "auto", "small: minutes on 2 cores; paper: as published; auto: paper with a GPU.", _JOB)
    device: Device = setting(
        "auto", "Where heads learn; auto: GPUs if any.", _TRAIN, words="auto|cpu|cuda|cuda:N")
    precision: Precision = setting("auto", "Arithmetic of training.")
    calibrate: Literal["folds", "quick"] = setting(
        "folds", "What thresholds are set by. folds: out-of-fold scores of all normals, by as many "
        "trainings more; quick: a share that is held out.", _TRAIN)
    folds: int = setting(5, "Folds of neighbours, for calibrate: folds.", ge=2, le=50)
    held_out: float | None = setting(
        None, "Share not trained on: for thresholds where calibrate is quick, for validation, for "
        "what a head chooses.", gt=0, le=0.5, otherwise="0.1; 0.2 of pairs")
    target_fpr: float = setting(
        0.05, "False-positive rate the threshold aims at.", _TRAIN, gt=0, lt=1)
    target_recall: float | None = setting(
        None, "Share of the known defects (val/KIND, --validation) that the threshold is to find, "
        "instead of a false-positive rate.", _TRAIN, gt=0, le=1)
    costs: Costs | None = setting(
        None, "Prices of a missed defect and of a false alarm: the threshold is the cheapest on "
        "known defects and out-of-fold normals.", _TRAIN, words="MISS:FALSE_ALARM")
    epochs: int | None = setting(
        None, "Epochs of heads that learn in epochs.", _TRAIN, ge=1, otherwise="the preset's")
    early_stop: int | None = setting(
        None, "Stop after so many epochs without a better held-out loss.", ge=1, otherwise="never")
    seed: int = setting(0, "Of weights, orders, splits.", _TRAIN)
    seeds: Seeds | None = setting(
        None, "Train with each of these seeds instead; compare tells their spread.", _TRAIN,
        words="N,N,...", otherwise="seed alone")
    workers: int | None = setting(
        None, "Heads trained at a time.", (*_TRAIN, "demo"), ge=1,
        otherwise="one a core, at most one a GPU")


class DaskSettings(Section):
    """Where extraction and trainings run."""

    scheduler: PlainAddress | None = setting(
        None, "Address of an existing Dask scheduler, as tcp://host:8786.", _JOB,
        otherwise="processes of this machine")


class Settings(Section):
    """Everything that can be set."""

    image_set: str | None = setting(None, "Name of the image set; commands are given it.")
    images: Path | None = setting(
        None, "Folder in a known layout, as train/good, test/KIND, ground_truth/KIND "
        "(NAME_mask.png); or a list of images.", (*_IMAGES, "demo"), kept=True)
    layout: LayoutName | None = setting(
        None, "How the images are laid out (docs/images.md), where it is not seen.", _IMAGES,
        otherwise="auto: the first that fits", kept=True)
    normal: Path | None = setting(
        None, "Instead: plain folder of normal images.", _IMAGES, kept=True)
    defective: Path | None = setting(
        None, "Plain folder of defective images, only to evaluate.", _IMAGES, kept=True)
    masks: Path | None = setting(
        None, "Folder of NAME.png or NAME_mask.png, white where defective.", _IMAGES, kept=True)
    test_normal: Path | None = setting(
        None, "Folder of normal images to test with, apart from those trained on.", _IMAGES,
        kept=True)
    validation: Path | None = setting(
        None, "Folder of known defects to choose thresholds, rules and heads by, a subfolder a "
        "kind; never trained on, never tested.", _IMAGES, kept=True)
    test_list: Path | None = setting(
        None, "Of a list of images: another one, of those to test with.", _IMAGES, kept=True)
    list_root: Path | None = setting(
        None, "Of a list of images: folder that its paths and s3:// addresses are below.", _IMAGES,
        named="--root", otherwise="the list's folder", kept=True)
    links: Literal["inside", "anywhere"] | None = setting(
        None, "Where links among the images may lead: inside their folder alone, or anywhere.",
        _IMAGES, otherwise="inside", kept=True)
    pairs: Path | None = setting(
        None, "Instead: folder of pairs, train or test / current, history, mask.", _IMAGES,
        kept=True)
    heads: Heads = setting(
        {}, "Heads to train; in the file a list, or a mapping to their settings.", _JOB,
        words="HEAD,HEAD",
        otherwise=f"{','.join(DEFAULT_HEADS)}; of pairs {','.join(DEFAULT_PAIR_HEADS)}")
    combine: Combined | None = setting(
        None, "Join these heads of the run to one model more, SET.ensemble; all (as without a "
        "value): those that can be.", _TRAIN, words="all|HEAD,HEAD")
    backbone: BackboneSettings = Field(default_factory=BackboneSettings)
    extraction: ExtractionSettings = Field(default_factory=ExtractionSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    retrain: RetrainSettings = Field(default_factory=RetrainSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    keep: KeepSettings = Field(default_factory=KeepSettings)
    hooks: HookSettings = Field(default_factory=HookSettings)
    dask: DaskSettings = Field(default_factory=DaskSettings)
    home: Path = setting(
        Path("headwater-home"), "Folder of all state.", _EVERY,
        otherwise="HEADWATER_HOME, then ./headwater-home")
    store: PlainAddress | None = setting(
        None, "Feature store: a folder or s3://bucket/prefix.", (*_JOB, "store"),
        otherwise="in home")
    tracking: SecretAddress | None = setting(
        None, "MLflow tracking URI.", (*_TRAIN, "models"), otherwise="SQLite in home")
    artifacts: PlainAddress | None = setting(
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
            for key, sign in LIMITS.items()
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
