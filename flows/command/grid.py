"""`headwater grid`: F²R's alpha and beta over the paper's 169 points, on a registered model."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from flows.command.options import (
    ConfigOption,
    HomeOption,
    JsonOption,
    SetArgument,
    StoreOption,
    TrackingOption,
    settings_from,
)
from flows.runtime.console import Reporter, err, out, table


class CoresetChoice(StrEnum):
    """How the gallery is had at a point."""

    once = "once"
    per_point = "per_point"


def grid(
    image_set: SetArgument,
    version: Annotated[
        str | None, typer.Option(help="Version or alias of the f2r model. [default: the newest]")
    ] = None,
    coreset: Annotated[
        CoresetChoice,
        typer.Option(help="once: the model's gallery; per_point: chosen anew, slow."),
    ] = CoresetChoice.once,
    every: Annotated[
        int, typer.Option(min=1, max=6, help="Only every Nth value: 3 gives 25 points.")
    ] = 1,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Score F²R at all 169 points of alpha and beta on the test images (an oracle).

    One MLflow run with the table, the two heat maps and the paper's correlations. The best points
    are chosen on the test labels: no model is changed. Broken off, the same command goes on.
    """
    options = {k: v for k, v in locals().items() if k not in ("version", "coreset", "every")}
    _, place = settings_from(options, write=False)
    from flows.use.grid import run_grid
    from heads.gallery.f2r_grid import VALUES

    points = tuple((a, b) for a in VALUES[::every] for b in VALUES[::every])
    with Reporter(quiet=json_).live() as reporter:
        got = run_grid(
            place, image_set, reporter, version=version, coreset=coreset.value, points=points
        )
    if json_:
        whole = {
            "chosen_on": got.result.chosen_on,
            "table": got.result.table,
            "points": got.rows(),
            "correlations": got.correlations(),
            "run_id": got.run_id,
            "picture": str(got.picture),
            "notes": got.notes,
        }
        out.print_json(json.dumps(whole))
        return
    rows = got.rows()
    columns = list(dict.fromkeys(k for row in rows for k in row))
    out.print(table(columns, [[row.get(k) for k in columns] for row in rows], f"{image_set}: f2r"))
    found = [
        [metric, name, row["rho"], f"{row['p_value']:.0e}"]
        for metric, of in got.correlations().items()
        for name, row in of.items()
    ]
    out.print()
    out.print(table(["metric", "with", "Spearman (partial)", "p"], found))
    out.print(f"\nheat maps: {got.picture}", markup=False)
    if got.resumed:
        err.print(f"note: {got.resumed} points were there from a grid that was broken off")
    for note in got.notes:
        err.print(f"note: {note}", markup=False)
