"""Settings of a run: `headwater.yaml`, overridden by command-line options.

A mistake is reported with its place (file, line, key) and the valid choices.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headwater.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class BackboneSettings(_Strict):
    """Which frozen network sees the images."""

    name: str = Field("resnet18", description="timm model name")
    weights: Path | None = Field(None, description="safetensors or .pth file, or a folder of them")
    options: dict[str, str | int | float | bool | list[float]] = Field(
        default_factory=dict, description="options for timm, stride_in_1x1, mean, std"
    )


class ExtractionSettings(_Strict):
    """How images become features."""

    size: int | tuple[int, int] | None = Field(
        None, description="pixels a side (or [height, width]); default 256, or what a head asks for"
    )
    crop: int | tuple[int, int] | None = Field(None, description="centre crop after the resize")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    compression: Literal["none", "lz4", "zstd"] = "none"
    batch: int = Field(16, ge=1, le=4096, description="images a backbone call")
    block_mb: int = Field(64, ge=1, le=4096, description="megabytes of features a commit")
    workers: int | None = Field(None, ge=1, description="processes that extract; default: this one")


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda or cuda:1")
    return name


class TrainingSettings(_Strict):
    """How heads learn and how their thresholds are set."""

    preset: Literal["auto", "small", "paper"] = Field(
        "auto", description="auto: paper where there is a GPU, small otherwise"
    )
    device: Annotated[str, AfterValidator(_device)] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    held_out: float | None = Field(
        None, gt=0, le=0.5, description="share not trained on; default 0.1 of images, 0.2 of pairs"
    )
    target_fpr: float = Field(0.05, gt=0, lt=1, description="false-positive rate of the threshold")
    epochs: int | None = Field(None, ge=1, description="instead of the preset's")
    early_stop: int | None = Field(None, ge=1, description="stop after so many epochs not better")
    seed: int = 0
    workers: int | None = Field(
        None, ge=1, description="heads trained at a time, at most one a GPU"
    )


class DaskSettings(_Strict):
    """Where trainings run."""

    scheduler: str | None = Field(None, description="address of an existing Dask scheduler")


class Settings(_Strict):
    """Everything `headwater.yaml` can say."""

    home: Path | None = None
    store: str | None = Field(None, description="folder or s3://bucket/prefix")
    tracking: str | None = Field(None, description="MLflow tracking URI")
    artifacts: str | None = Field(None, description="MLflow artifacts: s3://bucket/prefix")
    image_set: str | None = None
    images: Path | None = Field(None, description="folder in MVTec layout")
    normal: Path | None = None
    defective: Path | None = None
    masks: Path | None = None
    pairs: Path | None = Field(None, description="folder of pairs: train/current, train/history")
    backbone: BackboneSettings = Field(default_factory=BackboneSettings)
    extraction: ExtractionSettings = Field(default_factory=ExtractionSettings)
    heads: dict[str, dict[str, Any]] = Field(default_factory=dict)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    dask: DaskSettings = Field(default_factory=DaskSettings)


DEFAULT_HEADS = ("patchcore", "f2r", "cs_flow")
DEFAULT_PAIR_HEADS = ("pair_diff",)


def pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return ``(height, width)`` for one number or two."""
    return (size, size) if isinstance(size, int) else size


def load_settings(path: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read `path` (or ``./headwater.yaml`` if there is one) and put `overrides` over it.

    Parameters
    ----------
    path
        File named by the user, or None.
    overrides
        Dotted keys, ``{"backbone.name": "resnet50"}``; None values are left out.

    Raises
    ------
    ConfigError
        With the file, line, key and the valid choices of every mistake.
    """
    if path is None and Path("headwater.yaml").is_file():
        path = Path("headwater.yaml")
    data: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    if path is not None:
        data, lines = _read(path)
        base = path.absolute().parent
        for name in ("home", "images", "normal", "defective", "masks", "pairs"):
            _absolute(data, (name,), base)
        _absolute(data, ("backbone", "weights"), base)
    if isinstance(data.get("heads"), list):
        data["heads"] = {str(name): {} for name in data["heads"]}
    elif isinstance(data.get("heads"), dict):
        data["heads"] = {k: ({} if v is None else v) for k, v in data["heads"].items()}
    places: dict[tuple[str, ...], str] = {}
    for dotted, value in overrides.items():
        if value is None:
            continue
        keys = tuple(dotted.split("."))
        node = data
        for key in keys[:-1]:
            child = node.get(key)
            node[key] = child if isinstance(child, dict) else {}
            node = node[key]
        node[keys[-1]] = value
        places[keys] = "option --" + {"name": "backbone"}.get(keys[-1], keys[-1]).replace("_", "-")
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path, lines, places) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """Return the mapping and the line of every key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}",
            expected="a readable headwater.yaml",
            remedy="headwater init writes one with comments",
        ) from None
    try:
        data = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{place}: {problem}", expected="valid YAML") from None
    if data is None:
        return {}, {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}, line 1", expected="keys and values, such as images: ./photos")
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node, keys: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*keys, str(key.value))
                lines[here] = key.start_mark.line + 1
                walk(value, here)

    if root is not None:
        walk(root, ())
    return data, lines


def _absolute(data: dict[str, Any], keys: tuple[str, ...], base: Path) -> None:
    """Make a relative path in the file relative to the file."""
    node: Any = data
    for key in keys[:-1]:
        node = node.get(key) if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(node.get(keys[-1]), str):
        node[keys[-1]] = str(base / Path(node[keys[-1]]).expanduser())


def _explain(
    error: ValidationError,
    path: Path | None,
    lines: dict[tuple[str, ...], int],
    places: dict[tuple[str, ...], str],
) -> ConfigError:
    """Turn pydantic's findings into one `ConfigError` that lists them all with their places."""
    texts, hints = [], []
    for problem in error.errors():
        keys = tuple(str(k) for k in problem["loc"])
        known = [keys[:n] for n in range(len(keys), 0, -1)]
        place = next((places[k] for k in known if k in places), None)
        if place is None:
            line = next((lines[k] for k in known if k in lines), None)
            place = f"{path}, line {line}" if line else str(path or "settings")
        dotted = ".".join(k for k in keys if not k.startswith(("function", "tuple[", "int", "str")))
        if problem["type"] == "extra_forbidden":
            fields = _fields(keys[:-1])
            close = difflib.get_close_matches(keys[-1], fields, n=1)
            texts.append(f"{place}: unknown key {dotted!r}")
            hints.append((f"{close[0]!r}? " if close else "") + "one of " + ", ".join(fields))
        else:
            given = problem.get("input")
            texts.append(f"{place}: {dotted} = {given!r}")
            hints.append(expectation(problem["msg"]))
    unique = list(dict.fromkeys(zip(texts, hints, strict=True)))
    several = len(unique) > 1
    return ConfigError(
        "\n".join(f"{t}\n  expected: {h}" if several else t for t, h in unique),
        expected="" if several else unique[0][1],
        remedy="headwater init writes a file with every key and its comment",
    )


def expectation(message: str) -> str:
    """Return what pydantic expected, from what it says."""
    plain = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return re.sub(r"^.* is not (?=one of )|, unable to parse .*|\.$", "", plain)


def _fields(keys: tuple[str, ...]) -> list[str]:
    model: Any = Settings
    for key in keys:
        model = model.model_fields[key].annotation
    return sorted(model.model_fields)


TEMPLATE = """\
# headwater.yaml - every setting, with its default. Options on the command line override it.
# Relative paths are relative to this file.

# All state (feature store, MLflow, checkpoints) lives in one folder.
home: headwater-home
# store: s3://bucket/prefix      # default: <home>/store
# tracking: http://mlflow:5000   # default: SQLite in <home>
# artifacts: s3://bucket/mlflow  # MLflow's artifacts without a server; default: <home>

# The image set: a folder in MVTec layout ...
image_set: my-product
images: ./images/my-product      # train/good, test/good, test/KIND, ground_truth/KIND/NAME_mask.png
# ... or plain folders:
# normal: ./photos/good
# defective: ./photos/bad        # optional: only to evaluate
# masks: ./photos/masks          # optional: NAME.png or NAME_mask.png, white where defective
# ... or pairs of images of one place, for pair_diff and pair_flow:
# pairs: ./boards                # train|test / current, history and, where labels are known, mask

backbone:
  name: resnet18                 # any timm model
  # weights: ./weights/resnet18.safetensors   # default: HEADWATER_WEIGHTS, then timm's download
  # options: {pad_type: same}    # for timm; also stride_in_1x1, mean, std

extraction:
  # size: 256                    # pixels a side, or [height, width]; default 256 or the head's
  # crop: 224                    # centre crop after the resize
  precision: auto                # auto | float32 | bfloat16
  dtype: float16                 # stored: float16 | bfloat16 | float32
  compression: none              # none | lz4 | zstd
  batch: 16                      # images a backbone call
  block_mb: 64                   # megabytes of features a commit
  # workers: 4                   # processes that extract; default: this one alone

heads:                           # name: its settings (headwater heads lists both)
  patchcore: {}
  f2r: {}
  cs_flow: {}

training:
  preset: auto                   # auto (paper with a GPU, small without) | small | paper
  device: auto                   # auto | cpu | cuda | cuda:1
  precision: auto                # auto | float32 | bfloat16
  # held_out: 0.1                # share not trained on, for threshold and validation; pairs: 0.2
  target_fpr: 0.05               # false-positive rate the threshold aims at
  # epochs: 20                   # instead of the preset's
  # early_stop: 5                # stop after so many epochs without a better held-out loss
  seed: 0
  # workers: 2                   # heads trained at a time; default: one a core, at most one a GPU

# dask:
#   scheduler: tcp://host:8786   # an existing cluster instead of local processes
"""
