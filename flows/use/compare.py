"""Models beside each other: how sure their figures are, what differs, and on which images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flows.training.record import PIXELS_BY_KIND
from flows.use.bundle import model_parts
from flows.use.models.standing import (
    NO_MATTER,
    aim_of,
    best_known,
    cost_of,
    kinds_of,
    over_seeds,
    unlike,
    weaker,
)
from heads.judging.resampling import Resamples, delong
from headwater.errors import ConfigError, ModelError
from headwater.prices import Prices
from headwater.samples import IMAGE, PAIR
from headwater.spec import digest
from storage.registry.names import KIND, as_used, is_deleted
from storage.registry.registry import Registry

#: What models are ranked by: of images, of pairs.
FIRST = {IMAGE: "image_auroc", PAIR: "f1"}
#: Below this a difference is not put down to chance.
CHANCE = 0.05
#: Parameters of a run that are told with its data.
_OF_DATA = ("known_by", "train_rows", "train_images", "test_images", "backbone", "weights_sha256")


def compare_models(
    registry: Registry, image_set: str, prices: Prices | None = None
) -> list[dict[str, Any]]:
    """Return a set's models with how sure their figures are, those of one test set together.

    Parameters
    ----------
    prices
        Of mistakes; where given, models are ranked by what theirs cost.

    Returns
    -------
    list of dict
        Rows of `Registry.leaderboard` with ``input_size``, ``seed``, ``calibrate`` (what set the
        thresholds), ``aim`` (what they aim at), ``crop`` (``none``, or what of the image it saw),
        ``test`` (``images``, ``normal`` and ``digest`` of the tested images' contents and kinds;
        None where the run's table is gone), ``intervals`` (of each figure the 95 % interval, where
        the run kept its draws), ``kinds`` (figures by kind of defect), ``run_deleted``, ``cost``
        (None without prices), and ``behind``: of all but the best of its test set ``model``,
        ``difference``, ``interval`` and ``p`` of the figure that ranks, and ``level``, whether that
        may be chance. The first of a test set has ``says``, what to mind of its models' ranks, and
        ``over_seeds`` (`flows.use.models.standing`). Larger test sets first, then the best first.
    """
    rows = [_tested(registry, row, run) for row, run in registry.board(image_set)]
    made: list[dict[str, Any]] = []
    for group in sorted(
        ranked_apart(rows), key=lambda g: -(g[0]["test"] or {"images": 0})["images"]
    ):
        first = FIRST[PAIR if of_pairs(group) else IMAGE]
        ranked = sorted(group, key=lambda r: -r["metrics"].get(first, -1.0))
        best = ranked[0]
        for row in ranked:
            row["behind"] = None if row is best else _behind(best, row, first)
            row["cost"] = prices and cost_of(row["_table"], row["_draws"], prices)
            row["says"], row["over_seeds"] = [], []
        says = [*weaker(ranked, [row["_draws"] for row in ranked]), *unlike(ranked)]
        if prices:
            ranked.sort(key=lambda r: r["cost"]["an_image"] if r["cost"] else math.inf)
        ranked[0] |= {"says": says + best_known(ranked, [row["_facts"] for row in ranked])}
        known = [row for row in ranked if row["_facts"] is not None]
        ranked[0]["over_seeds"] = over_seeds(known, [row["_facts"] for row in known])
        made += ranked
    return [_public(row) for row in made]


def of_pairs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the figures of models are over the pixels of pairs."""
    return any("overall_accuracy" in row["metrics"] for row in rows)


def _public(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("_")}


def compare_two(registry: Registry, image_set: str, one: str, other: str) -> dict[str, Any]:
    """Return what differs between two models of a set, ``HEAD@VERSION`` each (or an alias).

    Returns
    -------
    dict
        ``models``: both rows. ``data`` and ``settings``: what differs, ``[of one, of other]`` by
        name. ``figures``: by name ``[of one, of other, difference, interval or None]``, where
        intervals are of the difference over the same draws of the test set; ``p`` of the image
        AUROC by DeLong's test. ``same_test``: whether they were tested on the same images.
        ``says``: what to mind of their ranks.
        ``changed``: images that both were tested on whose verdicts differ.

    Raises
    ------
    ConfigError
        For a model that is not ``HEAD@VERSION``.
    ModelError
        Where there is none, or its run is gone.
    """
    a, b = (
        _tested(registry, row, registry.find_run(row["run_id"]))
        for row in (named_model(registry, image_set, name) for name in (one, other))
    )
    if gone := [row for row in (a, b) if row["_facts"] is None]:
        raise ModelError(
            f"the run of {gone[0]['model']} version {gone[0]['version']} was deleted",
            expected="the run that trained it",
            remedy="compare others",
        )
    params, tags = ([row["_facts"][i] for row in (a, b)] for i in (0, 1))
    data = _of_data(registry, a, b)
    tested = [(r["test"] or {}).get("digest") for r in (a, b)]
    if tested[0] != tested[1]:
        data["test images"] = [_count(a), _count(b)]
    told = (*NO_MATTER, *_OF_DATA)
    settings = _differing(*({k: v for k, v in p.items() if k not in told} for p in params))
    code = [t.get("code", "") for t in tags]
    same = tested[0] is not None and tested[0] == tested[1]
    ranked = sorted((a, b), key=lambda r: -r["metrics"].get("image_auroc", -1.0))
    return {
        "models": [_public(row) for row in (a, b)],
        "data": data,
        "settings": settings | ({} if code[0] == code[1] else {"code": code}),
        "same_test": same,
        "figures": _figures(a, b, same),
        "p": _delong(a, b) if same else None,
        "says": [*weaker(ranked, [row["_draws"] for row in ranked]), *unlike(ranked)] * same,
        "changed": _changed(a, b),
    }


def _tested(registry: Registry, row: dict[str, Any], run: Any) -> dict[str, Any]:
    """Return a leaderboard's row with what it was tested on and how sure its figures are."""
    table, draws = None, None
    if run is not None:
        table = registry.sample_table(row["run_id"])
        if (kept := registry.artifact_json(row["run_id"], "resamples.json")) is not None:
            draws = Resamples.from_json(kept)
    test = None
    if table is not None:
        seen = sorted([content_of(r), r["kind"]] for r in table)
        normal = sum(r["kind"] == "good" for r in table)
        test = {"images": len(table), "normal": normal, "digest": digest(seen)}
    params = {} if run is None else as_used(run.data.params, row["metrics"].get("fit_epochs"))
    return {
        **row,
        "input_size": params.get("input_size", ""),
        "seed": params.get("seed", ""),
        "calibrate": params.get("calibrate", ""),
        "aim": aim_of(params),
        "crop": _crop(params),
        "test": test,
        "intervals": {} if draws is None else {k: draws.interval(k) for k in draws.figures},
        "kinds": _with_pixels(kinds_of(table), {} if run is None else run.data.metrics),
        "run_deleted": is_deleted(run),
        "_facts": None if run is None else (params, run.data.tags),
        "_table": table,
        "_draws": draws,
    }


def _with_pixels(
    kinds: dict[str, dict[str, float]], metrics: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return figures by kind with those of pixels that the run kept."""
    for kind, of in kinds.items():
        named = {name: f"{KIND}{kind}/{name}" for name in PIXELS_BY_KIND}
        of |= {name: metrics[key] for name, key in named.items() if key in metrics}
    return kinds


def _crop(params: Mapping[str, str]) -> str:
    """Return what of an image a model saw: ``none`` is cut away, or the middle of that size."""
    if params.get("resize") == "crop":
        return f"{params.get('input_size', '')} of its own aspect"
    return params.get("crop", "")


def _of_data(registry: Registry, a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what differs of the data that two models were trained on, ``[of a, of b]`` each."""
    tags = [row["_facts"][1] for row in (a, b)]
    digests = [t.get("data_digest") for t in tags]
    # A snapshot that only adds a layer has the same images.
    same = digests[0] is not None and digests[0] == digests[1]
    found: dict[str, list[Any]] = {}
    for name in ("snapshot", "history_snapshot", "extractor_id", "backbone", "weights"):
        if a[name] != b[name] and not (same and name.endswith("snapshot")):
            found[name] = [a[name], b[name]]
    said = [{k: t[k] for k in ("known_by", "data_digest") if k in t} for t in tags]
    found |= {k.replace("_", " "): v for k, v in _differing(*said).items()}
    tables = [registry.artifact_json(row["run_id"], "tables/samples.json") for row in (a, b)]
    if None in tables:
        return found
    one, other = (
        {content_of(r) for r in table if r["role"] in ("train", "held out")} for table in tables
    )
    if one != other:
        counts = [(len(one), len(one - other)), (len(other), len(other - one))]
        found["images learnt"] = [f"{n}, {only} of them only here" for n, only in counts]
    return found


def content_of(row: Mapping[str, Any]) -> str:
    """Return the content of the image, or of the pair, that a row of a run's table is of."""
    return row["sha256"] if "sha256" in row else row["current_sha256"] + row["history_sha256"]


def _behind(best: dict[str, Any], row: dict[str, Any], first: str) -> dict[str, Any] | None:
    """Return how far a model is behind the best one, and whether that may be chance."""
    a, b = best["metrics"].get(first), row["metrics"].get(first)
    if a is None or b is None:
        return None
    interval = _interval(best, row, first)
    p = _delong(best, row) if first == FIRST[IMAGE] else None
    level = p >= CHANCE if p is not None else None
    if level is None and interval is not None:
        level = interval[0] <= 0 <= interval[1]
    name = f"{best['head']} v{best['version']}"
    return {"model": name, "difference": b - a, "interval": interval, "p": p, "level": level}


def _interval(a: dict[str, Any], b: dict[str, Any], name: str) -> tuple[float, float] | None:
    """Return the interval of b's figure less a's."""
    if a["_draws"] is None or b["_draws"] is None:
        return None
    found: tuple[float, float] | None = b["_draws"].difference(a["_draws"], name)
    return found


def _delong(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """Return the p-value of equal image AUROCs; None without both tables or both classes."""
    if not a["_table"] or not b["_table"]:
        return None
    first = {content_of(r): r for r in a["_table"]}
    second = {content_of(r): r for r in b["_table"]}
    if first.keys() != second.keys():
        return None
    labels = np.array([first[k]["kind"] != "good" for k in first])
    if labels.all() or not labels.any():
        return None
    scores = [[rows[k]["score"] for k in first] for rows in (first, second)]
    return delong(scores[0], scores[1], labels)[1]


def named_model(registry: Registry, image_set: str, name: str) -> dict[str, Any]:
    """Return the model that ``HEAD@VERSION``, ``HEAD@ALIAS`` or ``HEAD`` names.

    ``SET.HEAD/VERSION``, as other commands call it, is understood, too.

    Raises
    ------
    ConfigError
        For a text that is none of these, or a model of another set.
    ModelError
        Where there is no such model.
    """
    expected = f"a model of {image_set}: HEAD@VERSION, as patchcore@2, or HEAD@ALIAS, or HEAD"
    try:
        first, head, version = model_parts(name)
    except ConfigError:
        raise ConfigError(f"model {name!r}", expected=expected) from None
    if head is not None and first != image_set:
        raise ConfigError(
            f"model {name!r} is of the set {first}",
            expected=expected,
            remedy=f"headwater compare {first} {head}@VERSION ...; of all sets: headwater compare",
        )
    return registry.get_model(image_set, head or first, version)


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {k: [a.get(k), b.get(k)] for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def _count(row: Mapping[str, Any]) -> str:
    return "not known" if row["test"] is None else str(row["test"]["images"])


def _figures(a: dict[str, Any], b: dict[str, Any], same: bool) -> dict[str, list[Any]]:
    found = {}
    for name in sorted({*a["metrics"]} & {*b["metrics"]}):
        one, other = a["metrics"][name], b["metrics"][name]
        found[name] = [one, other, other - one, _interval(a, b, name) if same else None]
    return found


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the samples whose verdicts differ, those that only the second has wrong first."""
    if not a["_table"] or not b["_table"]:
        return []
    second = {content_of(r): r for r in b["_table"]}
    made = []
    for row in a["_table"]:
        other = second.get(content_of(row))
        if other is None or other["verdict"] == row["verdict"]:
            continue
        made.append(
            {
                "image": row.get("path", row.get("key")),
                "kind": row["kind"],
                "verdicts": [row["verdict"], other["verdict"]],
                "scores": [row["score"], other["score"]],
                "better": None if row["correct"] is None else bool(other["correct"]),
            }
        )
    return sorted(made, key=lambda r: (r["better"] is not False, str(r["image"])))


def ranked_apart(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return rows of `compare_models` by the images they were tested on, in their order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["test"]["digest"] if row["test"] else "", []).append(row)
    return list(groups.values())
