"""What is told of a registered model: a row of the leaderboard."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Run as MlflowRun

from headwater.errors import ConfigError
from storage.registry.names import KIND, short
from storage.registry.runs import EPOCH

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
