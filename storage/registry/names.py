"""What figures and parameters are called in MLflow, and what they were called before.

A figure says there whether it is of images or of pixels. Rows of the leaderboard have the short
names that they always had: one set's are all of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping

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
#: Figures of one kind of defect are below this.
KIND = "kind/"


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
