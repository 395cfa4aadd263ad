"""What figures, parameters and models are called in MLflow, and were before; a model's row of them.

A figure says there whether it is of images or of pixels. Rows of the leaderboard have the short
names that they always had: one set's are all of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Run as MlflowRun

from headwater.errors import ConfigError

_AT_THRESHOLD = ("accuracy", "recall", "precision", "f1", "false_positive_rate")
#: Of image sets: short name to that in MLflow.
_IMAGES = {name: f"image_{name}" for name in (*_AT_THRESHOLD, "balanced_accuracy")} | {
    f"oracle.youden_{name}": f"oracle.image_youden_{name}" for name in ("recall", "accuracy")
}
#: Of pairs, whose figures are over pixels.
_PAIRS = {name: f"pixel_{name}" for name in ("precision", "recall", "f1", "iou", "eer")} | {
    "overall_accuracy": "pixel_accuracy",
    "auc": "pixel_auroc",
}
#: Figures of one kind of defect are below this, and those of single epochs below that.
KIND, EPOCH = "kind/", "epoch/"


def logged(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures by their names in MLflow.

    Examples
    --------
    >>> logged({"image_auroc": 0.9, "recall": 0.5})
    {'image_auroc': 0.9, 'image_recall': 0.5}
    >>> logged({"overall_accuracy": 0.9, "recall": 0.5})
    {'pixel_accuracy': 0.9, 'pixel_recall': 0.5}
    """
    names = _PAIRS if "overall_accuracy" in figures else _IMAGES
    return {names.get(k, k): v for k, v in figures.items()}


def short(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures by their short names: what `logged` was given, or a run of before has.

    Examples
    --------
    >>> short({"pixel_accuracy": 0.9, "pixel_recall": 0.5})
    {'overall_accuracy': 0.9, 'recall': 0.5}
    >>> short({"pixel_f1": 0.9, "image_f1": 0.5, "recall": 1.0})
    {'pixel_f1': 0.9, 'f1': 0.5, 'recall': 1.0}
    """
    names = _PAIRS if "pixel_accuracy" in figures else _IMAGES
    back = {full: name for name, full in names.items()}
    return {back.get(k, k): v for k, v in figures.items()}


def as_used(params: Mapping[str, str], epochs: float | None = None) -> dict[str, str]:
    """Return a run's parameters by today's names: what was used, one name each.

    Parameters
    ----------
    params
        Of any run; those of today are returned as they are.
    epochs
        Its figure ``fit_epochs``, if it has one: runs of before named what was asked for.

    Examples
    --------
    >>> old = {"config.seed": "3", "config.epochs": "16", "training.epochs": "5", "head": "padim"}
    >>> as_used(old, 5.0)
    {'head': 'padim', 'seed': '3', 'epochs': '5'}
    """
    if "config.seed" not in params:
        return dict(params)
    gone = ("config.seed", "config.epochs", "config.nodes")
    found = {k: v for k, v in params.items() if k not in gone and not k.startswith("training.")}
    found["seed"] = params["config.seed"]
    if epochs is not None:
        found["epochs"] = str(int(epochs))
    renamed = {
        "training.target_fpr": "target_fpr",
        "training.held_out": "held_out_share",
        "training.early_stop": "early_stop_epochs",
        "training.calibrate": "calibrate",
    }
    own = {new: params[old] for old, new in renamed.items() if params.get(old, "null") != "null"}
    return found | own


#: Figures of a run that are no metrics of the detector: columns of their own, and the promise.
_COSTS = ("seconds", "peak_mb", "score_seconds_per_image")
_PROMISE = {
    "threshold",
    "pixel_threshold",
    "promised_false_positive_rate",
    "promised_pixel_false_positive_rate",
    "least_false_positive_rate",
    "calibration_seconds",
}


def is_deleted(run: MlflowRun | None) -> bool:
    """Whether the run that trained a model was deleted, for good or not yet."""
    return run is None or run.info.lifecycle_stage == "deleted"


def model_name(image_set: str, head: str) -> str:
    """Return the registered model's name, ``SET.HEAD``, with what MLflow allows in names.

    Examples
    --------
    >>> model_name("bottles", "patchcore")
    'bottles.patchcore'
    """
    name = f"{image_set}.{head}"
    if any(c in name for c in "/:'\"%") or not image_set or not head:
        raise ConfigError(
            f"model name {name!r}", expected="an image set and a head without / : quotes or %"
        )
    return name


def row_of(version: Any, run: MlflowRun | None, head: str) -> dict[str, Any]:
    """Return what is told of a registered model; tags of the version stand in for a lost run."""
    figures = short(run.data.metrics) if run else {}
    figures = {k: v for k, v in figures.items() if k not in _PROMISE}
    costs = {k: figures.pop(k, None) for k in _COSTS}
    params = run.data.params if run else {}
    return {
        "head": head,
        "version": str(version.version),
        "model": version.name,
        "uri": f"models:/{version.name}/{version.version}",
        "run_id": version.run_id,
        "snapshot": version.tags.get("snapshot", ""),
        "history_snapshot": version.tags.get("history_snapshot", ""),
        "extractor_id": version.tags.get("extractor_id", ""),
        "backbone": version.tags.get("backbone") or params.get("backbone", ""),
        "weights": version.tags.get("weights", ""),
        "aliases": sorted(version.aliases),
        "metrics": {k: figures[k] for k in sorted(figures) if not k.startswith((EPOCH, KIND))},
        **costs,
        "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(
            timespec="seconds"
        ),
    }
