"""The card of a model in service: what it is for, what it learnt, how it was judged, what it lacks.

All of it is read from what was recorded. What was not is said to be missing; nothing is guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from features.backbones.packages import packaged_by_hash
from flows.runtime.home import Home
from flows.use.models.lineage import lineage
from heads.judging.metrics import Metrics
from heads.judging.resampling import resample
from headwater.errors import HeadwaterError, ModelError
from headwater.samples import IMAGE
from storage.registry.describe import plain, run_page, table
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService

#: Artifact of the model's run.
CARD = "card.md"
_MISSING = "not recorded"
#: Of fewer normals a card says what that costs.
_FEW = 50
#: What set the threshold, by the parameter `calibrate`.
_CHOSEN = {
    "folds": "out-of-fold scores of all normals",
    "quick": "scores of a share of the normals that was held out",
    "fixed": "nothing: its scores are probabilities",
}


def card_of(home: Home, image_set: str, locked: Mapping[str, str] | None = None) -> str:
    """Return the card of the model in service, as Markdown.

    Parameters
    ----------
    home, image_set
        Whose.
    locked
        The locked test: SHA-256 of each image, and its kind; None where none is known.

    Raises
    ------
    ModelError
        Where nothing is in service, or it is gone.
    """
    registry = Registry(home.root, home.tracking_url)
    service = InService(registry, image_set)
    row = service.champion()
    if row is None:
        raise ModelError(
            f"nothing is in service for {image_set}",
            expected="a model in service, which a card is about",
            remedy=f"headwater promote {image_set} HEAD",
        )
    events = [e for e in service.events() if e["to"] == row["service_version"]]
    event = next((e for e in events if e["what"] != "keep"), {})
    try:
        made = lineage(home, image_set)
    except ModelError:  # its run was deleted
        made = {}
    run = registry.find_run(row["run_id"])
    figures = dict(run.data.metrics) if run is not None else {}
    answers = registry.sample_table(row["run_id"]) if run is not None else None
    place = registry.experiments().get(image_set, "")
    return "\n\n".join(
        [
            f"# {plain(image_set)}: {plain(row['model'])} version {plain(row['version'])}",
            _what_for(image_set, row, event),
            "## Data",
            _data(row, made),
            "## On the locked test",
            _judged(answers or [], locked),
            "## What it promises",
            _promise(made, figures),
            "## Why it is in service",
            _gate(event),
            "## How it is made",
            _how(row, made),
            "## Known limits",
            _limits(made, answers or [], locked, figures),
            "## Where it comes from",
            _pointers(image_set, row, place),
        ]
    )


def keep_card(
    home: Home, image_set: str, locked: Mapping[str, str] | None, tell: Callable[[str], None]
) -> None:
    """Keep the card with the run of the model in service, as `CARD`.

    A card that cannot be made or kept is told, and takes nothing out of service.
    """
    registry = Registry(home.root, home.tracking_url)
    try:
        row = InService(registry, image_set).champion()
        if row is not None:
            registry.attach(row["run_id"], card_of(home, image_set, locked), CARD)
    except (HeadwaterError, OSError, ValueError, KeyError) as error:
        tell(f"{image_set}: its model card cannot be kept: {str(error).splitlines()[0]}")


def _what_for(image_set: str, row: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    kind = "pairs of images" if row["history_snapshot"] else "images"
    since = f"since {event['when']}, by {plain(event['who'])}" if event else f"since: {_MISSING}"
    return (
        f"Tells normal {kind} of *{plain(image_set)}* from anomalous ones. It has learnt from "
        "normals alone what these look like; it does not say what a defect is, and says nothing of "
        f"use about another product. In service as version {row['service_version']}, {since}."
    )


def _data(row: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    data = made.get("data", {})
    images = made.get("images") or {}
    told = ", ".join(f"{count} {plain(role)}" for role, count in sorted(images.items()))
    return _facts(
        {
            "images, by what they were to it": told,
            "snapshot": data.get("snapshot") or row["snapshot"],
            "digest of images and labels": data.get("digest"),
            "images known by": data.get("known_by") or ("all of the snapshot" if data else None),
        }
    )


def _of_locked(
    answers: Sequence[Mapping[str, Any]], locked: Mapping[str, str]
) -> list[tuple[str, float, bool]]:
    """Return kind, score and whether it was flagged, of the locked images that were scored."""
    return [
        (locked[one["sha256"]], one["score"], one["verdict"] != IMAGE.verdicts[0])
        for one in answers
        if one.get("sha256") in locked
    ]


def _judged(answers: Sequence[Mapping[str, Any]], locked: Mapping[str, str] | None) -> str:
    if not locked:
        return f"No locked test is known: {_MISSING}."
    found = _of_locked(answers, locked)
    if not found:
        return "Its training kept no answers to the locked test: figures are not recorded."
    kinds = Counter(kind for kind, _, _ in found)
    rows = []
    for kind in sorted(kinds, key=lambda kind: (kind != "good", kind)):
        flagged = sum(called for own, _, called in found if own == kind)
        name = "false alarms, of normals" if kind == "good" else f"found, of {plain(kind)}"
        low, high = binomtest(flagged, kinds[kind]).proportion_ci()
        rows.append([name, f"{flagged} of {kinds[kind]}", f"{low:.1%} to {high:.1%}"])
    bad = [kind != "good" for kind, _, _ in found]
    if any(bad) and not all(bad):
        rows.insert(0, ["image AUROC", *_auroc(found, bad)])
    few = len(locked) - len(found)
    note = f" Of {few} its training kept no answer, as they came later." if few else ""
    return (
        f"Figures of {len(found)} of {len(locked)} locked images, with 95 % intervals (of shares "
        "exact after Clopper and Pearson, of AUROC by a bootstrap stratified by kind)."
        f"{note}\n\n" + table(["", "", "95 %"], rows)
    )


def _auroc(found: Sequence[tuple[str, float, bool]], bad: Sequence[bool]) -> tuple[str, str]:
    from sklearn.metrics import roc_auc_score  # late: half a second

    scores = [score for _, score, _ in found]
    drawn = resample(
        scores, bad, [kind for kind, _, _ in found], 0.0, exact=Metrics(image_auroc=0.0)
    )
    interval = drawn.interval("image_auroc")
    told = _MISSING if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return f"{roc_auc_score(bad, scores):.3f}", told


def _promise(made: Mapping[str, Any], figures: Mapping[str, float]) -> str:
    settings = made.get("settings") or {}
    folds = f", in {settings.get('folds')} folds by {settings.get('folds_by')}"
    rate = figures.get("promised_false_positive_rate")
    chosen = (made.get("validation") or {}).get("chose")
    how = _CHOSEN.get(settings.get("calibrate", ""), settings.get("calibrate"))
    return _facts(
        {
            "false-positive rate promised": None if rate is None else f"{rate:.2%}",
            "false-positive rate asked for": settings.get("target_fpr"),
            "threshold": figures.get("threshold"),
            "set by": how and f"{how}{folds if 'folds' in settings else ''}",
            "chosen by known defects": chosen or "nothing",
        }
    )


def _gate(event: Mapping[str, Any]) -> str:
    if not event:
        return f"Who put it there, and why: {_MISSING}."
    lines = [f"{plain(event['what'])}, by {plain(event['who'])}: {plain(event['why'] or _MISSING)}"]
    checks = event.get("checks") or ()
    lines += [f"- {plain(check)}" for check in checks]
    if not checks:
        lines.append("Checks of the gate: none are recorded; it was put there by hand, or before.")
    return "\n".join(lines[:1]) + "\n\n" + "\n".join(lines[1:])


def _how(row: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    extractor, settings = made.get("extractor") or {}, made.get("settings") or {}
    weights = extractor.get("weights_sha256") or row["weights"]
    packaged = packaged_by_hash(weights) if weights else None
    machine = made.get("machine") or {}
    return _facts(
        {
            "head": f"{row['head']}, preset {settings['preset']}" if "preset" in settings else None,
            "backbone": row["backbone"],
            "layers": extractor.get("layers"),
            "pixels": extractor.get("input_size"),
            "extractor id": row["extractor_id"],
            "weights, SHA-256": weights,
            "licence of the weights": None if packaged is None else packaged.licence,
            "seed": made.get("seed"),
            "code": made.get("code"),
            "machine": ", ".join(str(v) for v in machine.values()),
            "trained": row["created"],
        }
    )


def _limits(
    made: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    locked: Mapping[str, str] | None,
    figures: Mapping[str, float],
) -> str:
    found = _of_locked(answers, locked or {})
    lines = []
    for kind in sorted({kind for kind, _, _ in found} - {"good"}):
        own = [called for k, _, called in found if k == kind]
        if missed := len(own) - sum(own):
            lines.append(f"It misses {missed} of {len(own)} of the kind {plain(kind)}.")
        if len(own) < 10:
            lines.append(f"Only {len(own)} of the kind {plain(kind)} judge it.")
    if not any(kind != "good" for kind, _, _ in found):
        lines.append("No known defect judges it: what it finds is not measured.")
    normals = (made.get("images") or {}).get("train")
    if normals is not None and normals < _FEW:
        least = figures.get("least_false_positive_rate")
        told = "" if least is None else f" so few can promise no rate below {least:.1%};"
        lines.append(
            f"It has learnt from {normals} normals:{told} what they do not show of the product is "
            "anomalous to it."
        )
    lines += [plain(note) for note in made.get("notes") or ()]
    lines.append("Kinds of defects that the locked test does not have are not judged.")
    return "\n".join(f"- {line}" for line in lines)


def _pointers(image_set: str, row: Mapping[str, Any], place: str) -> str:
    page = f", [page]({run_page(place, row['run_id'])})" if place else ""
    model = f"{row['model']}/{row['version']}"
    return (
        f"- run `{row['run_id']}`{page}\n"
        f"- `headwater lineage {model}` lists every image, `headwater reproduce {model}` trains it "
        f"again\n- `headwater history {image_set}` has what was in service before"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    """Return a table of facts; what is not known is said to be missing."""
    rows: Iterable[list[str]] = (
        [name, plain(_MISSING if value in (None, "", "none") else value)]
        for name, value in facts.items()
    )
    return table(["", ""], rows)
