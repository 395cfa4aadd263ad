"""What `headwater compare` prints: models beside each other, two of them, and all sets at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.command.report import IMAGE_COLUMNS, KNOWN_COLUMN, PAIR_COLUMNS
from flows.runtime.console import duration, err, out, table
from flows.use.compare import of_pairs
from headwater.spec import seed_of_untrained
from headwater.text import shown
from storage.registry.names import logged

#: Images whose verdict changed that are printed.
MOST = 20
#: Of all sets, by their names in MLflow: each says whether it is of images or pixels.
EVERY = {
    "image AUROC": "image_auroc",
    "image recall": "image_recall",
    "image FPR": "image_false_positive_rate",
    "image F1": "image_f1",
    "val AUROC": "val_image_auroc",
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "aupro",
    "pixel recall": "pixel_recall",
    "pixel F1": "pixel_f1",
    "pixel IoU": "pixel_iou",
}

#: Figures that are told by kind of defect, a table each.
_BY_KIND = {"image_recall": "image recall", "pixel_aupimo": "AUPIMO", "aupro": "AUPRO"}


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `compare_models` for programs: figures by their names in MLflow."""
    pairs = {"overall_accuracy": 0.0} if of_pairs([row]) else {}
    intervals = logged({**row["intervals"], **pairs})
    if pairs and "overall_accuracy" not in row["intervals"]:
        del intervals["pixel_accuracy"]
    return {**row, "metrics": logged(row["metrics"]), "intervals": intervals}


def show_models(image_set: str, groups: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Print a table for each set of test images, best first, and what is to be known of them.

    Parameters
    ----------
    image_set
        Name of the set.
    groups
        From `flows.use.compare.ranked_apart`.
    """
    for group in groups:
        test = group[0]["test"]
        what = "test images not known"
        if test is not None:
            what = f"{test['images']} test images, {test['normal']} of them normal"
        if len(groups) > 1 and test is not None:
            what += f", {test['digest'][:8]}"
        out.print(_models(group, f"{image_set}: registered models on {what}, best first"))
        for figure, called in _BY_KIND.items():
            if any(figure in of for row in group for of in row["kinds"].values()):
                out.print(_kinds(group, figure, called))
        for spread in group[0]["over_seeds"]:
            out.print(_spread(spread, of_pairs(group)))
        out.print()
    for group in groups:
        for text in group[0]["says"]:
            err.print(f"note: {text}", markup=False)
    if len(groups) > 1:
        err.print("note: models that were tested on other images are not ranked with each other")
    if any(seed_of_untrained(row["weights"]) is not None for group in groups for row in group):
        err.print("note: models of an untrained net are among these: illustrative only")
    for group in groups:
        if len({row["input_size"] for row in group} - {""}) > 1:
            err.print("note: some saw their images in another size, so their pixels are not alike")


def _called(row: Mapping[str, Any]) -> list[str]:
    """Return head, and version with its aliases and whether its run is gone."""
    marks = "".join(f" {alias}" for alias in row["aliases"])
    return [row["head"], f"v{row['version']}{marks}{' (run deleted)' * row['run_deleted']}"]


def _models(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    columns = PAIR_COLUMNS if of_pairs(rows) else list(IMAGE_COLUMNS)
    if any("pixel_aupimo" in row["metrics"] for row in rows):
        columns = [*columns[:3], ("AUPIMO", "pixel_aupimo"), *columns[3:]]
    if any(KNOWN_COLUMN[1] in row["metrics"] for row in rows):
        columns = [*columns, KNOWN_COLUMN]
    first, others = columns[0], columns[1:]
    priced = any(row["cost"] for row in rows)
    names = ["head", "model", *["cost an image", "95 %", "missed", "false alarms"] * priced]
    names += [first[0], "95 %", "against the best"]
    for name, key in others:
        names += [name, *["95 %"] * (key == "pixel_aupimo")]
    cells = []
    for row in rows:
        figures: list[Any] = [row["metrics"].get(first[1])]
        figures += [_range(row["intervals"].get(first[1])), _standing(row)]
        for _, key in others:
            figures.append(row["metrics"].get(key))
            if key == "pixel_aupimo":
                figures.append(_range(row["intervals"].get(key)))
        took = None if row.get("seconds") is None else duration(row["seconds"])
        own = [row["input_size"] or None, row["seed"] or None, took, row["created"][:10]]
        cells.append([*_called(row), *_cost(row["cost"]) * priced, *figures, *own])
    return table([*names, "size", "seed", "fit", "made"], cells, title, whole=names[:2])


def _cost(cost: Mapping[str, Any] | None) -> list[Any]:
    if cost is None:
        return [None] * 4
    return [
        f"{cost['an_image']:.4g}",
        _range(cost["interval"]),
        cost["misses"],
        cost["false_alarms"],
    ]


def _kinds(rows: Sequence[Mapping[str, Any]], figure: str, called: str) -> Any:
    """Return the table of a figure by kind of defect, each kind with its number of images."""
    counts = {kind: int(of["images"]) for row in rows for kind, of in row["kinds"].items()}
    names = ["head", "model", *(shown(f"{kind} ({counts[kind]})") for kind in sorted(counts))]
    cells = [
        [
            *_called(row),
            *(row["kinds"].get(kind, {}).get(figure) for kind in sorted(counts)),
        ]
        for row in rows
    ]
    return table(names, cells, f"{called} by kind of defect (images)", whole=names[:2])


def _spread(found: Mapping[str, Any], pairs: bool) -> Any:
    """Return the table of mean and spread over seeds."""
    columns = PAIR_COLUMNS if pairs else IMAGE_COLUMNS
    figures = [(name, found["figures"][key]) for name, key in columns if key in found["figures"]]
    cells = [[name, of["mean"], of["sd"], of["low"], of["high"]] for name, of in figures]
    title = f"{found['head']} over seeds {', '.join(found['seeds'])}"
    return table(["figure", "mean", "sd", "lowest", "highest"], cells, title, whole=("figure",))


def show_every(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print one table of the models of all sets, by set, best first within one set of test images.

    Parameters
    ----------
    rows
        Of `flows.use.compare.compare_models`, by set.
    """
    every = [(name, row, logged(row["metrics"])) for name, of in rows.items() for row in of]
    used = {text: key for text, key in EVERY.items() if any(key in m for *_, m in every)}
    priced = any(row["cost"] for _, row, _ in every)
    cells = [
        [
            name,
            *_called(row),
            *_cost(row["cost"])[:1] * priced,
            *(metrics.get(key) for key in used.values()),
            None if row["test"] is None else row["test"]["images"],
            row["input_size"] or None,
            row["seed"] or None,
            row["created"][:10],
        ]
        for name, row, metrics in every
    ]
    names = ["set", "head", "model", *["cost an image"] * priced, *used]
    names += ["test images", "size", "seed", "made"]
    title = "registered models of all sets, best first on their test images"
    out.print(table(names, cells, title, whole=names[:3]))
    for name, of in rows.items():
        for text in (text for row in of for text in row["says"]):
            err.print(f"note: {name}: {text}", markup=False)
    out.print("headwater compare SET says how sure that is", markup=False)


def _range(found: Sequence[float] | None) -> str | None:
    return None if found is None else f"{found[0]:.3f} to {found[1]:.3f}"


def _standing(row: Mapping[str, Any]) -> str | None:
    """Return how a model stands to the best one, in words."""
    behind = row["behind"]
    if behind is None:
        return None
    p = "" if behind["p"] is None else f" (p {behind['p']:.2g})"
    if behind["level"] is None:
        return f"{behind['difference']:+.3f}"
    return f"{'level' if behind['level'] else 'worse'} {behind['difference']:+.3f}{p}"


def _about(row: Mapping[str, Any]) -> str:
    """Return what a model is, in a line."""
    test = "not known" if row["test"] is None else str(row["test"]["images"])
    head, version = _called(row)
    said = [f"{test} test images", row["input_size"], f"seed {row['seed']}" if row["seed"] else ""]
    return f"{head} {version}: " + ", ".join(filter(None, [*said, f"made {row['created'][:10]}"]))


def logged_rows(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures of two models by their names in MLflow."""
    return dict(zip(logged(dict.fromkeys(figures, 0.0)), figures.values(), strict=True))


def show_two(found: Mapping[str, Any]) -> None:
    """Print what differs between two models."""
    names = [f"{row['head']} v{row['version']}" for row in found["models"]]
    for row in found["models"]:
        out.print(_about(row), markup=False)
    out.print()
    for what in ("data", "settings"):
        if found[what]:
            rows = [[k, *(_short(v) for v in values)] for k, values in found[what].items()]
            out.print(table([what, *names], rows))
        else:
            out.print(f"{what}: the same")
        out.print()
    for text in found["says"]:
        err.print(f"note: {text}", markup=False)
    if not found["same_test"]:
        err.print("note: they were tested on other images, so their figures do not compare")
    rows = [
        [name, one, other, f"{gap:+.4f}", _sure(interval)]
        for name, (one, other, gap, interval) in logged_rows(found["figures"]).items()
    ]
    out.print(table(["figure", *names, "difference", "95 %"], rows, whole=("figure",)))
    if found["p"] is not None:
        out.print(f"equal image AUROCs would differ as much with p = {found['p']:.2g} (DeLong)")
    changed = found["changed"]
    out.print(f"\n{len(changed)} image(s) with another verdict")
    if changed:
        rows = [
            [str(r["image"]), r["kind"], *r["verdicts"],
             {True: "better", False: "worse", None: None}[r["better"]]]
            for r in changed[:MOST]
        ]  # fmt: skip
        out.print(table(["image", "kind", *names, ""], rows))
    if len(changed) > MOST:
        out.print(f"and {len(changed) - MOST} more (--json lists all)")


def _sure(interval: Sequence[float] | None) -> str | None:
    if interval is None:
        return None
    chance = " (chance)" if interval[0] <= 0 <= interval[1] else ""
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}{chance}"


def _short(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
