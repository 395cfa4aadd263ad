"""What a training was made of, as its run keeps it: to be read, compared, and trained again from.

Parameters say what was used, not what was asked for: one name each, with its unit. The file
`LINEAGE` holds the whole of what was asked, and the table `SAMPLES` every image by its digest.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter

from flows.extraction.samples import REMOVED, UNLEARNT, digest_of
from flows.runtime.home import Home
from flows.training.trainings import Training
from heads.catalogue import get_head
from heads.judging.calibration import Calibration
from heads.judging.kinds import by_kind
from heads.judging.metrics import evaluate
from heads.training.arithmetic import choose_precision, device_of
from headwater.errors import ModelError
from headwater.spec import ExtractorSpec
from storage.registry.facts import versions
from storage.registry.names import KIND
from storage.registry.registry import Registry
from storage.store.table import moment_of, nanoseconds

if TYPE_CHECKING:
    from flows.training.data import TrainingData
    from flows.training.evaluation import Judgement
    from heads.training.out_of_fold import OutOfFold

#: Artifact of a run: what to train again from.
LINEAGE = "lineage.json"
#: Table of a run: every image of the set, and what it was to the training.
SAMPLES = "samples"
#: Artifact of an ensemble's run: the models that it joins.
MEMBERS = "members.json"
#: What an image was to a training.
TRAIN, HELD_OUT, TEST, LEFT_OUT = "train", "held out", "test", "left out"
VALIDATION = "validation"
#: How a head was trained: from all images, or from a model and what is new.
FULL, GROWN = "full", "grown"
#: Figures of pixels that each kind of defect has by itself, beside AUPIMO.
PIXELS_BY_KIND = ("aupro", "pixel_ap")
#: Fields of a head's configuration that have a name of their own, or are told by `layers`.
_NAMED = ("seed", "epochs", "nodes", "members")


def params_of(
    training: Training, data: TrainingData, source: Any, held_out: Any, device: str
) -> dict[str, Any]:
    """Return the parameters of a training that are known before it learns.

    Parameters
    ----------
    training, data
        What is trained on what.
    source, held_out
        What the head learns from, and what is kept from it.
    device
        Where it learns, as `Training.options` or a worker names it.
    """
    plan, options, spec = training.plan, training.options, training.plan.spec
    config = {k: v for k, v in plan.config.items() if k not in _NAMED}
    labelled = get_head(plan.head).labelled
    found = {
        "head": plan.head,
        "preset": plan.preset,
        "seed": training.seed,
        **{f"config.{k}": v for k, v in config.items()},
        "calibrate": "fixed" if labelled else "folds" if training.folds else "quick",
        "held_out_share": options.held_out,
        "target_fpr": options.target_fpr,
        "target_recall": options.target_recall,
        "costs": options.costs,
        "early_stop_epochs": options.early_stop,
        "device": told_device(device),
        "threads": training.threads,
        **_of_extractor(spec),
        "layers": ", ".join(x.name for x in plan.layers),
        "views": plan.view_spec.views.count if plan.view_spec and plan.view_spec.views else 0,
        "known_by": None if training.known_by is None else moment_of(training.known_by),
        "train_rows": len(source),
        "train_images": len(set(source.ids)),
        "held_out_images": _images(held_out),
        "test_images": len(data.test),
    }
    return {k: v for k, v in found.items() if v is not None}


def _of_extractor(spec: ExtractorSpec) -> dict[str, Any]:
    """Return how images became features, by the names of the options that say so."""
    tiles = spec.tiles
    found = {
        "backbone": spec.backbone,
        "backbone_options": dict(spec.options) or None,
        "weights_sha256": spec.weights,
        "input_size": _by(spec.input_size),
        "size": _by(spec.resize),
        "crop": "none" if spec.crop is None else _by(spec.crop),
        "resize": spec.fitting,
        "range": "none" if spec.value_range is None else "{}:{}".format(*spec.value_range),
        "roi": spec.region or "none",
        "extractor_precision": spec.precision,
        "stored_dtype": spec.dtype,
    }
    if tiles is None:
        return found
    scale = "both" if tiles.scale else "tiles"
    return {**found, "tile": tiles.edge, "overlap": tiles.overlap, "scale": scale}


def _by(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def late_params(
    training: Training, figures: dict[str, float], apart: OutOfFold | None, device: str
) -> dict[str, Any]:
    """Return the parameters that are known when a head has learnt: as it went, not as asked."""
    found: dict[str, Any] = {}
    if "epochs" in figures:
        found["epochs"] = int(figures["epochs"])
        asked = training.options.precision
        found["training_precision"] = choose_precision(asked, device_of(device))
    if apart is not None:
        found |= {"folds": apart.folds.count, "folds_by": apart.folds.by}
    return found


def params_of_known(judged: Judgement) -> dict[str, Any]:
    """Return the parameters that tell of known defects; none where there are none."""
    if judged.known is None:
        return {}
    told = judged.known.record()
    found = {"validation_images": told["images"], "validation_digest": told["digest"]}
    chosen = told["chose"].get("score")
    return {**found, "score_chosen": chosen["rule"]} if chosen else found


def params_of_growth(growth: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that tell whether a head learnt from all images or was grown."""
    if growth is None:
        return {"trained": FULL}
    told = {"grown_from": growth["from"], "growths_since_full": growth["growths"]}
    return {"trained": GROWN, **told, "images_new": growth["new"], "images_gone": growth["gone"]}


def final_figures(figures: dict[str, float]) -> dict[str, float]:
    """Return what a fit tells of itself, without what has another name."""
    return {f"fit_{k}": v for k, v in figures.items() if k not in ("epochs", "fit_seconds")}


def told_device(name: str) -> str:
    """Return a device with the name of what it is."""
    device = device_of(name)
    if device.type != "cuda":
        return str(device)
    return f"cuda:{device.index or 0} {torch.cuda.get_device_name(device)}"


def _images(source: Any) -> int:
    """Return how many samples the rows of a source are of."""
    return len(set(source.ids)) if hasattr(source, "parts") else len(source)


def kinds_of(judged: Judgement) -> dict[str, float]:
    """Return the figures of each kind of defect among test images, by their names in MLflow."""
    if any(s.is_pair for s in judged.samples):
        return {}
    kinds = [s.kind for s in judged.samples]
    found = by_kind(judged.scores, kinds, judged.calibration.threshold)
    for kind, of in found.items():
        if own := [v for i, v in judged.aupimo.items() if kinds[i] == kind]:
            of["pixel_aupimo"] = float(np.mean(own))
        # Its own marked pixels against all of the normal images': those of other kinds are no part.
        at = [i for i, k in enumerate(kinds) if k in (kind, "good")]
        part = judged.truth.only(at)
        told = evaluate(judged.scores[at], part.maps, judged.labels[at], part.masks)
        of |= {name: told[name] for name in PIXELS_BY_KIND if name in told}
    return {f"{KIND}{kind}/{name}": v for kind, of in found.items() for name, v in of.items()}


# --- thresholds -------------------------------------------------------------------------------


def promise(found: Calibration, apart: OutOfFold | None) -> dict[str, float]:
    """Return thresholds, what they promise and what they took, as figures of a run."""
    figures = {"threshold": found.threshold}
    if found.pixel_threshold is not None:
        figures["pixel_threshold"] = found.pixel_threshold
    if found.rule != "fixed":
        figures["promised_false_positive_rate"] = found.attained_fpr
        figures["least_false_positive_rate"] = found.least_fpr
        if found.pixel_target_fpr is not None:
            figures["promised_pixel_false_positive_rate"] = found.pixel_target_fpr
    if apart is not None:
        figures["calibration_seconds"] = apart.seconds
    return figures


def threshold_in_words(found: Calibration) -> str:
    """Return a threshold and where it comes from, in words."""
    if found.rule == "fixed":
        return f"{found.threshold:.6g}, fixed: scores are probabilities"
    if found.known is not None:
        low, high = found.spread or (found.attained_fpr,) * 2
        return (
            f"{found.threshold:.6g}: {found.known['told']}; new normal images that are like those "
            f"are false alarms in {found.attained_fpr:.1%} of cases on average, {low:.1%} to "
            f"{high:.1%} for nine in ten such sets"
        )
    if found.folds is not None and found.spread is not None:
        low, high = found.spread
        return (
            f"{found.threshold:.6g} from out-of-fold scores of {found.n} normals in "
            f"{found.folds['count']} folds by {found.folds['by']}; new images that are like "
            f"these are false alarms in {found.attained_fpr:.1%} of cases on average of such sets "
            f"of normals, {low:.1%} to {high:.1%} for nine in ten; {found.target_fpr:.1%} were "
            "asked for"
        )
    return (
        f"{found.threshold:.6g} from {found.n} held-out normals, which promise "
        f"{found.attained_fpr:.1%} of false alarms; {found.target_fpr:.1%} were asked for"
    )


def attained(metrics: dict[str, float]) -> str:
    """Return in words what a threshold gave on the test images; empty without any."""
    words = {"false_positive_rate": "of normal images called", "recall": "of defects found"}
    return ", ".join(f"{metrics[k]:.1%} {text}" for k, text in words.items() if k in metrics)


# --- what it was made of ----------------------------------------------------------------------


def lineage_of(training: Training, data: TrainingData, device: str) -> dict[str, Any]:
    """Return all that the same training takes, JSON-ready; `training_from` reads it back."""
    made = TypeAdapter(Training).dump_python(
        training, mode="json", exclude={"home", "root", "parent_run"}
    )
    return {
        "format": 1,
        "training": made,
        "data_digest": digest_of(data.all),
        "machine": machine() | {"device": told_device(device)},
        "versions": versions(),
    }


def training_from(lineage: Mapping[str, Any], home: Home, root: Path) -> Training:
    """Return the training that `lineage_of` kept, of a set whose images lie below `root`.

    Raises
    ------
    ModelError
        For a lineage of a newer Headwater.
    """
    if lineage.get("format") != 1:
        raise ModelError(
            f"lineage of format {lineage.get('format')!r}",
            expected="format 1",
            remedy="a newer Headwater wrote it: install that",
        )
    plain = TypeAdapter(Home).dump_python(home, mode="json")
    whole = {**lineage["training"], "home": plain, "root": str(root)}
    made = TypeAdapter(Training).validate_python(whole)
    return dataclasses.replace(made, home=home)


def known_by_of(registry: Registry, image_set: str, given: str | None, snapshot: str) -> int | None:
    """Return the moment by which the images of a snapshot had arrived that its models learnt from.

    Parameters
    ----------
    given
        As it was asked for: a model's tag means that model alone.
    snapshot
        Its id.

    Returns
    -------
    int or None
        Nanoseconds UTC; None where no model of it, or not every one, was trained on a part.
    """
    if given is None:
        return None
    runs = registry.trained_at(image_set, snapshot)
    own = [tags for name, tags in runs if f"{given}-".startswith(f"model-{name}-")]
    told = {tags.get("known_by", "") for tags in own or [tags for _, tags in runs]}
    return nanoseconds(told.pop()) if len(told) == 1 and "" not in told else None


@functools.cache
def machine() -> dict[str, str]:
    """Return what decides, beside the code, whether a computation comes out to the bit."""
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [x.partition(":")[2].strip() for x in known.splitlines() if x.startswith("model name")]
    return {
        "host": socket.gethostname(),
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def samples_of(
    data: TrainingData,
    source: Any,
    held_out: Any,
    apart: OutOfFold | None,
    held_scores: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Return a row an image (or pair) of the set: its digest and what it was to the training.

    Parameters
    ----------
    source, held_out
        What the head learnt from, and what was kept from it.
    apart
        Its folds.
    held_scores
        Scores of the images that set the threshold, out of fold or held out.
    """
    learnt, held = set(source.ids), set(held_out.ids)
    have, scores = set(data.readable), {}
    if held_scores is not None:
        scored = apart.images if apart is not None else list(dict.fromkeys(held_out.ids))
        scores = dict(zip(scored, held_scores.tolist(), strict=True))
    rows = []
    for s in data.all:
        fold = None if apart is None else apart.folds.of.get(s.id)
        why = ""
        if s not in have:
            role, why = LEFT_OUT, "no stored features"
        elif s.review == REMOVED:
            role, why = LEFT_OUT, REMOVED
        elif s.split == "test":
            role = TEST
        elif s.split == "val":
            role = VALIDATION
        elif s.id in learnt or s.id in held:
            role = TRAIN if s.id in learnt else HELD_OUT
        else:
            role = LEFT_OUT
            unlearnt = s.review in UNLEARNT
            why = s.review if unlearnt else f"{s.kind}: nothing is learnt from it"
        digests = ("sha256",) if len(s.contents) == 1 else ("current_sha256", "history_sha256")
        rows.append(
            {
                "key" if s.is_pair else "path": s.key,
                **dict(zip(digests, s.contents, strict=True)),
                "split": s.split,
                "kind": s.kind,
                "role": role,
                "why": why,
                "fold": fold,
                "calibration_score": scores.get(s.id),
                "group": s.group,
                "review": s.review,
            }
        )
    return rows
