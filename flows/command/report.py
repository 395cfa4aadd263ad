"""What commands print: summaries of extractions and runs, the leaderboard, the list of heads."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.runtime.console import duration, err, out, size, table
from headwater.addresses import hidden
from headwater.errors import HeadwaterError
from headwater.spec import seed_of_untrained
from headwater.text import shown

if TYPE_CHECKING:
    from flows.extraction.report import ExtractionReport
    from flows.runtime.home import Home
    from flows.training.results import RunResult
    from flows.use.backbones import Listed


def show_extraction(report: ExtractionReport, as_json: bool = False) -> None:
    """Print what an extraction did, and what it set aside."""
    if as_json:
        out.print_json(data=report.to_json())
        return
    if (found := report.pairs) is not None:
        out.print(
            f"[bold]{report.image_set}[/]: {found.pairs} pairs ({found.train} for training, "
            f"{found.changed} changed); {report.hashed} files read"
        )
    if report.left_out:
        rest = ", ".join(f"{n} {what}" for what, n in report.left_out.items())
        out.print(f"not read: {rest}", markup=False)
    for side in report.sides:
        changes = ", ".join(f"{n} {what}" for what, n in side.changes.items() if n)
        read = f"; {report.hashed} files read" if found is None else ""
        out.print(
            f"[bold]{side.image_set}[/]: {side.images} images ({side.normal_train} normal for "
            f"training); {changes or 'nothing changed'}{read}"
        )
        for one in side.extracted:
            views = f", {one.views} views an image" if one.views else ""
            out.print(
                f"extractor {one.spec} ({one.backbone}{views}): "
                f"{one.backbone_calls} backbone calls, {one.seconds:.1f} s"
            )
            rows = [[x, one.wanted - one.missing.get(x, 0), one.maps.get(x, 0)] for x in one.layers]
            out.print(table(["layer", "stored before", "computed"], rows))
    if not report.backbone_calls:
        out.print("Nothing to extract: every feature was in the store; the backbone was not run.")
    show_set_aside(report)


def show_set_aside(report: ExtractionReport) -> None:
    """Print the images that were set aside and the notes, to standard error."""
    if report.set_aside:
        err.print(f"{len(report.set_aside)} image(s) set aside; the rest went on:", style="yellow")
        for path, reason in report.set_aside[:20]:
            err.print(f"  {shown(path)}: {shown(reason.splitlines()[0])}", markup=False)
        if len(report.set_aside) > 20:
            err.print(
                f"  and {len(report.set_aside) - 20} more (headwater extract --json lists all)"
            )
    for note in report.notes[:20]:
        err.print(f"note: {shown(note)}", markup=False)
    if len(report.notes) > 20:
        err.print(f"note: and {len(report.notes) - 20} more")


def show_run(result: RunResult, home: Home) -> None:
    """Print the summary of a run: features, heads, pictures, and where to look further."""
    if result.extraction is not None:
        show_extraction(result.extraction)
    if result.outcomes:
        how = ("trained", "found in MLflow")
        rows = [vars(o) | {"note": how[o.reused]} for o in result.outcomes]
        out.print()
        out.print(leaderboard_table(rows, f"{result.image_set}: leaderboard"))
    said = result.extraction.notes if result.extraction is not None else []
    # What holds for several heads is said once.
    for note in dict.fromkeys(n for o in result.outcomes for n in o.notes):
        if note not in said:
            err.print(f"note: {shown(note)}", markup=False)
    pictures = [p for o in result.outcomes for p in o.pictures]
    if pictures:
        out.print("\nchange maps:" if "change-maps" in pictures[0] else "\nheat maps:")
        for picture in pictures:
            out.print(f"  {shown(shorten(picture))}", markup=False)
    for head, error in result.failures:
        err.print(hidden(f"error: {head}: {error}"), style="red", markup=False)
        if not isinstance(error, HeadwaterError):
            err.print(hidden("".join(traceback.format_exception(error))), markup=False)
    if result.outcomes:
        out.print(f"\nopen the results in MLflow:\n  {ui_command(home)}", markup=False)


IMAGE_COLUMNS = [
    ("image AUROC", "image_auroc"),
    ("pixel AUROC", "pixel_auroc"),
    ("AUPRO", "aupro"),
    ("F1", "f1"),
    ("recall", "recall"),
    ("FPR", "false_positive_rate"),
]
#: Over the pixels of all labelled test pairs.
PAIR_COLUMNS = [
    ("precision", "precision"),
    ("recall", "recall"),
    ("accuracy", "overall_accuracy"),
    ("F1", "f1"),
    ("IoU", "iou"),
    ("AUC", "auc"),
    ("EER", "eer"),
]


def leaderboard_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the leaderboard: a row a model, best image AUROC (of pairs, best pixel F1) first."""
    pairs = any("overall_accuracy" in r["metrics"] for r in rows)
    columns, first = (PAIR_COLUMNS, "f1") if pairs else (IMAGE_COLUMNS, "image_auroc")
    ranked = sorted(rows, key=lambda r: -r["metrics"].get(first, -1.0))
    cells = [
        [
            r["head"],
            f"v{r['version']}",
            *(r["metrics"].get(key) for _, key in columns),
            f"{r['seconds']:.1f} s" if r.get("seconds") is not None else None,
            size(r["peak_mb"] * 1e6) if r.get("peak_mb") else None,
            *([r["note"]] if "note" in r else []),
        ]
        for r in ranked
    ]
    names = ["head", "model", *(name for name, _ in columns), "fit", "peak memory"]
    if rows and "note" in rows[0]:
        names.append("")
    return table(names, cells, title, whole=names[:2])


def ui_command(home: Home) -> str:
    """Return the command that opens the MLflow UI on this home's results."""
    program = Path(sys.argv[0])
    name = shorten(str(program.absolute())) if program.name == "headwater" else "headwater"
    return f"{name} ui --home {shorten(str(home.root))}"


def shorten(path: str) -> str:
    """Return a path relative to the working folder where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def backbones_table(rows: list[Listed]) -> tuple[Table, list[str]]:
    """Return the table of backbones, and the lines that say which heads its letters leave out."""
    without = {row.name: tuple(row.refused) for row in rows if row.heads and row.refused}
    letters = {gone: chr(ord("a") + i) for i, gone in enumerate(dict.fromkeys(without.values()))}
    words = {"installable": "pip", "none": "no"}
    columns = ["backbone", "weights", "params M", "MB", "px", "ms", "heads"]
    told = [
        [
            row.name,
            words.get(row.weights, row.weights),
            f"{row.parameters / 1e6:,.1f}",
            f"{row.bytes / 1e6:,.0f}",
            "x".join(map(str, row.size if len({*row.size}) > 1 else row.size[:1])),
            "-" if row.milliseconds is None else f"{row.milliseconds:,.1f}",
            " ".join(filter(None, (str(len(row.heads)), letters.get(without.get(row.name, ()))))),
        ]
        for row in rows
    ]
    made = table(columns, told, whole=("backbone",))
    for column in made.columns[2:6]:
        column.justify = "right"
    lines = [f"heads {letter}: all but {', '.join(gone)}" for gone, letter in letters.items()]
    return made, lines


# --- comparing models ---------------------------------------------------------------------

#: Images whose verdict changed that are printed.
MOST = 20


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
        what = "test images not known" if test is None else f"{test['images']} test images"
        if len(groups) > 1 and test is not None:
            what += f" {test['digest'][:8]}"
        out.print(_models(group, f"{image_set}: registered models on {what}, best first"))
        out.print()
    if len(groups) > 1:
        err.print("note: models that were tested on other images are not ranked with each other")
    if any(seed_of_untrained(row["weights"]) is not None for group in groups for row in group):
        err.print("note: models of an untrained net are among these: illustrative only")
    for group in groups:
        if len({row["input_size"] for row in group} - {""}) > 1:
            err.print("note: some saw their images in another size, so their pixels are not alike")


def _models(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    pairs = any("overall_accuracy" in row["metrics"] for row in rows)
    columns = PAIR_COLUMNS if pairs else IMAGE_COLUMNS
    first, others = columns[0], columns[1:]
    names = ["head", "model", first[0], "95 %", "against the best"]
    names += [name for name, _ in others] + ["size", "seed", "fit", "made"]
    if pairs:
        names = ["head", "model", *(name for name, _ in columns), "size", "seed", "fit", "made"]
    cells = []
    for row in rows:
        aliases = "".join(f" {alias}" for alias in row["aliases"])
        named = [row["head"], f"v{row['version']}{aliases}"]
        figures = [row["metrics"].get(key) for _, key in columns]
        if not pairs:
            figures[1:1] = [_range(row["intervals"].get(first[1])), _standing(row)]
        took = None if row.get("seconds") is None else duration(row["seconds"])
        cells.append(
            [*named, *figures, row["input_size"] or None, row["seed"] or None, took,
             row["created"][:10]]
        )  # fmt: skip
    return table(names, cells, title, whole=names[:2])


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


def show_two(found: Mapping[str, Any]) -> None:
    """Print what differs between two models."""
    names = [f"{row['head']} v{row['version']}" for row in found["models"]]
    for what in ("data", "settings"):
        if found[what]:
            rows = [[k, *(_short(v) for v in values)] for k, values in found[what].items()]
            out.print(table([what, *names], rows))
        else:
            out.print(f"{what}: the same")
        out.print()
    if not found["same_test"]:
        err.print("note: they were tested on other images, so their figures do not compare")
    rows = [
        [name, one, other, f"{gap:+.4f}", _sure(interval)]
        for name, (one, other, gap, interval) in found["figures"].items()
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
