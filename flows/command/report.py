"""What commands print: summaries of extractions and runs, the leaderboard, the list of heads."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.runtime.console import err, out, table
from headwater.addresses import hidden
from headwater.errors import HeadwaterError
from headwater.samples import IMAGE, PAIR
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
        known = f", {side.known_defects} known defects" if side.known_defects else ""
        out.print(
            f"[bold]{side.image_set}[/]: {side.images} images ({side.normal_train} normal for "
            f"training{known}); {changes or 'nothing changed'}{read}"
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
        how = ("trained", "joined", "found in MLflow")
        rows = [vars(o) | {"note": how[2 * o.reused or o.joined]} for o in result.outcomes]
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
        out.print(f"\nopen the results in MLflow:\n  {next_command('ui', home)}", markup=False)
        page = next_command(f"report {result.image_set}", home)
        out.print(f"look at them on one page:\n  {page}", markup=False)


#: The figure that ranks comes first.
IMAGE_COLUMNS = [
    ("image AUROC", "image_auroc"),
    ("pixel AUROC", "pixel_auroc"),
    ("AUPRO", "aupro"),
    ("image F1", "f1"),
    ("image recall", "recall"),
    ("image FPR", "false_positive_rate"),
]
#: Of sets with known defects: these against the out-of-fold normals, so no figure of the test.
KNOWN_COLUMN = ("val AUROC", "val_image_auroc")
#: Over the pixels of all labelled test pairs.
PAIR_COLUMNS = [
    ("pixel F1", "f1"),
    ("pixel precision", "precision"),
    ("pixel recall", "recall"),
    ("pixel accuracy", "overall_accuracy"),
    ("pixel IoU", "iou"),
    ("pixel AUROC", "auc"),
    ("pixel EER", "eer"),
]


#: Regions of a sample that are printed; --json and --csv have all.
MOST_REGIONS = 3


def show_predictions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of `flows.use.predict.predict`: a table, the regions, what was set aside."""
    good = [row for row in rows if not row["error"]]
    if good:
        whose = f"{good[0]['model']} version {good[0]['version']}"
        if served := good[0].get("service_version"):
            whose += f", in service as version {served}"
        hidden = ("model", "version", "service_version", "note", "error")
        columns = [name for name in good[0] if name not in hidden]
        cells = [[len(r[c]) if c == "regions" else r[c] for c in columns] for r in good]
        out.print(table([c.replace("_", " ") for c in columns], cells, whose))
    if any(row["regions"] for row in good):
        out.print("\nregions, in pixels of the picture:")
    for row in good:
        found = row["regions"]
        for region in found[:MOST_REGIONS]:
            out.print(f"  {shown(next(iter(row.values())))}: {told_region(region)}", markup=False)
        if len(found) > MOST_REGIONS:
            more = len(found) - MOST_REGIONS
            out.print(f"  {shown(next(iter(row.values())))}: and {more} more", markup=False)
        if row["note"]:
            out.print(f"  {shown(next(iter(row.values())))}: {row['note']}", markup=False)
    for row in rows:
        if row["error"]:
            culprit = " ".join(str(row[k]) for k in (*IMAGE.images, *PAIR.images) if k in row)
            err.print(f"set aside {shown(culprit)}: {shown(row['error'])}", markup=False)


def show_served(image_set: str, served: Sequence[Mapping[str, Any]]) -> None:
    """Print pictures of service that nobody has spoken of, and how to."""
    names = ("id", "name", "verdict", "score", "threshold", "p_value", "why", "picture")
    cells = [[row[n] for n in names] for row in served]
    columns = ["served", "name", "", "score", "threshold", "p", "why", "picture"]
    out.print(table(columns, cells, f"{image_set}: served, what is it?"))
    out.print(f"headwater feedback {image_set} NUMBER ok|defect[:KIND]|unsure\n", markup=False)


def told_region(region: Mapping[str, Any]) -> str:
    """Return a region, as of `storage.serving.prediction.Region.to_json`, in words.

    Examples
    --------
    >>> told_region(dict(x=3, y=9, width=40, height=22, area=512, peak_x=7, peak_y=12, peak=3.25))
    '40x22 at (3, 9), area 512, peak 3.25 at (7, 12)'
    """
    return (
        "{width}x{height} at ({x}, {y}), area {area:,}, peak {peak:.4g} at ({peak_x}, {peak_y})"
    ).format(**region)


def leaderboard_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the leaderboard: a row a model, best image AUROC (of pairs, best pixel F1) first."""
    pairs = any("overall_accuracy" in r["metrics"] for r in rows)
    columns = PAIR_COLUMNS if pairs else IMAGE_COLUMNS
    if any(KNOWN_COLUMN[1] in r["metrics"] for r in rows):
        columns = [*columns, KNOWN_COLUMN]
    ranked = sorted(rows, key=lambda r: -r["metrics"].get(columns[0][1], -1.0))
    cells = [
        [
            r["head"],
            f"v{r['version']}",
            r["seed"],
            *(r["metrics"].get(key) for _, key in columns),
            f"{r['seconds']:.1f} s" if r.get("seconds") is not None else None,
            round(r["peak_mb"]) if r.get("peak_mb") else None,
            *([r["note"]] if "note" in r else []),
        ]
        for r in ranked
    ]
    names = ["head", "model", "seed", *(name for name, _ in columns), "fit", "peak MB"]
    if rows and "note" in rows[0]:
        names.append("")
    return table(names, cells, title, whole=names[:2])


def next_command(words: str, home: Home) -> str:
    """Return a command on this home's results as it is to be typed here."""
    program = Path(sys.argv[0])
    name = shorten(str(program.absolute())) if program.name == "headwater" else "headwater"
    return f"{name} {words} --home {shorten(str(home.root))}"


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
