"""All that a page about a set shows, as one JSON-ready mapping."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.extraction.samples import Sample
from flows.pictures.page.thumbs import edge_for
from flows.runtime.home import Home
from flows.training.small_maps import FILE, SmallMap, load
from flows.use.compare import compare_models, ranked_apart
from flows.use.report.models import Shown, choose, opened, version_of
from flows.use.report.pictures import drawn, laid_over, samples_by_content
from flows.use.review import odd_normals, worth_a_look
from headwater.errors import DataError, ModelError
from headwater.samples import IMAGE, PAIR, SampleKind
from headwater.text import shown
from headwater.version import __version__
from storage.registry.names import as_used
from storage.registry.registry import Registry

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: Pictures of test samples on a page, and of odd normals, unless more are asked for.
MOST, MOST_ODD = 500, 60
#: A grid's figures, and what they are called.
_GRID = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
#: What of a run's parameters and tags is told of where a model comes from, and what it is called.
_ORIGIN = {
    "snapshot": "snapshot of the store",
    "history_snapshot": "snapshot of the history side",
    "pairs": "list of pairs",
    "train_rows": "trained on, rows",
    "held_out_images": "held out, images",
    "extractor_id": "extractor",
    "backbone": "backbone",
    "weights_sha256": "weights, SHA-256",
    "layers": "layers",
    "input_size": "pixels seen",
    "extractor_precision": "arithmetic",
    "preset": "preset",
    "seed": "seed",
    "code": "code",
    "headwater.key": "training key",
}
#: Parameters of a run that say how it was trained.
_TRAINING = (
    "epochs", "device", "training_precision", "threads", "calibrate", "folds", "folds_by",
    "held_out_share", "target_fpr", "early_stop_epochs", "known_by",
)  # fmt: skip


def report_data(
    home: Home,
    image_set: str,
    reporter: Reporter,
    *,
    models: Sequence[str] = (),
    most: int = MOST,
) -> dict[str, Any]:
    """Gather the page about a set's models.

    Parameters
    ----------
    models
        Show these in full, ``HEAD@VERSION``; by default the newest of each head.
    most
        Pictures of test samples at most: those that heads have wrong or differ on come first.

    Raises
    ------
    DataError
        Where the set has no model.
    ConfigError, ModelError
        For a model that is none.
    """
    registry = Registry(home.root, home.tracking_url)
    rows = compare_models(registry, image_set)
    if not rows:
        raise DataError(**registry.no_models(image_set))
    chosen, notes = choose(registry, image_set, rows, models)
    heads, more = opened(home, registry, image_set, chosen, reporter)
    kind = heads[0].kind if heads else IMAGE
    return {
        **_about(image_set, kind, [*notes, *more]),
        "boards": _boards(rows, chosen),
        "heads": [_head(model) for model in heads],
        "samples": _samples(home, image_set, heads, most, reporter),
        "odd": _odd(home, registry, image_set, reporter),
        "grids": grids_of(registry, image_set),
        "origin": [{"name": model.name, "parts": _origin(model)} for model in heads],
    }


def review_data(
    home: Home,
    image_set: str,
    reporter: Reporter,
    *,
    head: str | None = None,
    served: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Gather the page of the normals that look least normal alone; errors as of `odd_normals`.

    `served` are rows of `flows.serving.teaching.most_teaching`, which come first.
    """
    registry = Registry(home.root, home.tracking_url)
    found = _odd(home, registry, image_set, reporter, head, needed=True) or {}
    found["served"] = _served(image_set, served, reporter)
    return {**_about(image_set, IMAGE, []), "odd": found}


def _served(
    image_set: str, rows: Sequence[Mapping[str, Any]], reporter: Reporter
) -> list[dict[str, Any]]:
    """Return cards of pictures that were served, with what to type to say what they are."""
    samples = [
        Sample(row["name"], "served", "good", (row["sha256"],), (Path(row["picture"]),))
        if row["picture"]
        else None
        for row in rows
    ]
    pictures = drawn(samples, edge_for(len(rows)), None, reporter, "served")
    command = f"headwater feedback {shlex.quote(image_set)}"
    return [
        {
            "name": shown(row["name"] or row["sha256"][:12]),
            "said": f"{row['verdict']}: score {row['score']:.4g}, threshold "
            f"{row['threshold']:.4g}; {row['why']}",
            **picture,
            "maps": [],
            # By hash: no name can be taken for anything else by a shell.
            "answers": [
                f"{command} {row['sha256'][:12]} {answer}"
                for answer in ("ok", "defect:KIND", "unsure")
            ],
        }
        for row, picture in zip(rows, pictures, strict=True)
    ]


def _about(image_set: str, kind: SampleKind, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "set": image_set,
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "headwater": __version__,
        "kind": {"name": kind.name, "images": kind.images, "verdicts": kind.verdicts},
        "notes": [shown(note) for note in notes],
    }


# --- models --------------------------------------------------------------------------------------


def _boards(
    rows: Sequence[dict[str, Any]], chosen: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a leaderboard for each set of test samples, as `headwater compare` has them."""
    keep = ("head", "version", "aliases", "metrics", "intervals", "behind", "input_size", "seed",
            "seconds", "created", "backbone", "run_id")  # fmt: skip
    full = [row["run_id"] for row in chosen]
    return [
        {
            "test": group[0]["test"],
            "rows": [{k: r[k] for k in keep} | {"full": r["run_id"] in full} for r in group],
        }
        for group in ranked_apart(rows)
    ]


def _head(model: Shown) -> dict[str, Any]:
    found = model.calibration
    return {
        "name": model.name,
        "head": model.row["head"],
        "version": model.row["version"],
        "threshold": found.threshold,
        "probabilities": found.rule == "fixed",
        "target": found.target_fpr,
        "promised": None if found.rule == "fixed" else found.attained_fpr,
        "promise": [shown(said) for said in model.promise()],
        "normals": list(found.scores or ()),
    }


def _origin(model: Shown) -> dict[str, dict[str, str]]:
    """Return by groups what a model was trained from, and with what."""
    params = as_used(model.params, model.row["metrics"].get("fit_epochs"))
    facts = {**params, **model.tags}
    named = {text: facts[key] for key, text in _ORIGIN.items() if facts.get(key)}
    named = {"made": model.row["created"], "run": model.row["run_id"], **named}

    def below(prefix: str) -> dict[str, str]:
        start = len(prefix)
        return {k[start:]: v for k, v in sorted(facts.items()) if k.startswith(prefix)}

    parts = {
        "Data and net": named,
        "Settings of the head": below("config."),
        "Settings of the training": {k: facts[k] for k in _TRAINING if k in facts},
        "Versions": below("version."),
    }
    return {title: {k: shown(v) for k, v in part.items()} for title, part in parts.items() if part}


# --- samples -------------------------------------------------------------------------------------


def _samples(
    home: Home, image_set: str, heads: Sequence[Shown], most: int, reporter: Reporter
) -> list[dict[str, Any]]:
    """Return the test samples; all with their scores, the first `most` with pictures."""
    if not heads:
        return []
    first = heads[0]
    rows = sorted(first.table, key=lambda content: _trouble(heads, content))
    known = samples_by_content(home, image_set, first.at)
    pictured = rows[:most]
    pictures = drawn(
        [known.get(content) for content in pictured],
        edge_for(len(pictured)),
        first.spec.value_range,
        reporter,
        "pictures",
    )
    made = []
    for i, content in enumerate(rows):
        row = first.table[content]
        sample = known.get(content)
        name = "" if sample is None else sample.id
        correct = row["correct"]
        made.append(
            {
                "name": shown(row.get("path", row.get("key"))),
                "kind": shown(row["kind"]),
                "bad": None if correct is None else row["kind"] != "good",
                "scores": [model.table[content]["score"] for model in heads],
                **(pictures[i] if i < len(pictured) else {"pictures": None, "mask": None}),
                "maps": [laid_over(m.maps, name or content) for m in heads] if i < most else [],
            }
        )
    return made


def _trouble(heads: Sequence[Shown], content: str) -> tuple[Any, ...]:
    """Sort by how many heads have a sample wrong, then by whether they differ, then by score."""
    rows = [model.table[content] for model in heads]
    wrong = sum(row["correct"] is False for row in rows)
    differ = len({row["verdict"] for row in rows}) > 1
    return -wrong, not differ, -rows[0]["score"], content


# --- odd normals ---------------------------------------------------------------------------------


def _odd(
    home: Home,
    registry: Registry,
    image_set: str,
    reporter: Reporter,
    head: str | None = None,
    *,
    needed: bool = False,
) -> dict[str, Any] | None:
    """Return the normals that look least normal, as `headwater review` lists them.

    None where no model has out-of-fold scores, unless they are `needed`.
    """
    try:
        every, sheets = odd_normals(home, image_set, head)
    except ModelError:
        if needed:
            raise
        return None
    rows = worth_a_look(every)
    newest = [r for r in registry.leaderboard(image_set, 1) if head in (None, r["head"])]
    names = sorted({name for row in every for name in row["heads"]})
    maps: dict[str, Mapping[str, SmallMap]] = {}
    known: dict[str, Any] = {}
    for row in newest:
        kept = registry.artifact(row["run_id"], FILE)
        maps[row["head"]] = {} if kept is None else load(kept).get("normals", {})
        facts = registry.facts(row["run_id"])
        if facts is not None and not known:
            kind = PAIR if "pairs" in facts[1] else IMAGE
            found = samples_by_content(home, image_set, version_of(facts[1], kind))
            known = {sample.id: sample for sample in found.values()}
    few = rows[:MOST_ODD]
    samples = [known.get(row["sha256"]) for row in few]
    pictures = drawn(samples, edge_for(len(few)), None, reporter, "odd normals")
    command = f"headwater review {shlex.quote(image_set)}"
    return {
        "heads": names,
        "normals": len(every),
        "worth": len(rows),
        "served": [],
        # Of models from before, which kept no maps.
        "sheets": [] if any(maps.values()) else sheets,
        "rows": [
            {
                "name": shown(row.get("path", row.get("key"))),
                "p": row["p_value"],
                "out": row["stands_out"],
                "by": [row["heads"].get(name) for name in names],
                "said": [shown(row[k]) for k in ("said", "who", "when")] if "said" in row else None,
                **pictures[i],
                "maps": [laid_over(maps.get(name, {}), row["sha256"]) for name in names],
                # By hash: no name can be taken for anything else by a shell.
                "accept": f"{command} --accept {row['sha256'][:12]}",
                "reject": f"{command} --reject {row['sha256'][:12]}",
            }
            for i, row in enumerate(few)
        ],
    }


# --- grids ---------------------------------------------------------------------------------------


def grids_of(registry: Registry, image_set: str) -> list[dict[str, Any]]:
    """Return the newest grid over F²R's factors of each model that has one."""
    made: dict[str, dict[str, Any]] = {}
    for run_id, params, tags in registry.studies(image_set):
        name = tags.get("headwater.model", "").removeprefix("models:/").replace("/", " v")
        file = registry.artifact(run_id, "tables/grid.json")
        if file is None or name in made:
            continue
        points = json.loads(file.read_text())
        own = json.loads(params["own"]) if "own" in params else None
        made[name] = {
            "name": shown(name),
            "coreset": params.get("coreset", ""),
            "own": own,
            "metrics": {text: key for key, text in _GRID.items() if key in points[0]},
            "points": points,
        }
    return list(made.values())
