"""`headwater made`: which made defects a model finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command.keep.bundle import ModelArgument
from flows.command.options import JsonOption, command_group, takes
from flows.runtime.console import Reporter, out, table
from flows.runtime.given import Given

commands = command_group("Made defects.")


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def made(
    model: ModelArgument,
    given: Given,
    count: Annotated[int, typer.Option(min=1, help="How many defects.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the defects.")] = 0,
    pictures: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the pictures and their masks."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Draw defects into normals that a model learnt from, and print how many it finds.

    A smoke test, the same for every model of a set: it says that a model finds something, not how
    well it finds the defects of your product. It ranks no heads and no rules.
    """
    _, home = given.open(write=False)
    from flows.use.models.made import made_recall_of

    with Reporter(quiet=json_).live() as reporter:
        found = made_recall_of(home, model, reporter, count=count, seed=seed, out=pictures)
    if json_:
        out.print_json(data=found.to_json())
        return
    rows = [[kind, made, hits, hits / made] for kind, (hits, made) in found.kinds.items()]
    rows.append(["all", found.made, found.found, found.recall])
    title = f"{found.model}: made defects, seed {found.seed}"
    out.print(table(["kind", "made", "found", "share"], rows, title, whole=("kind",)))
    called, every = found.normals
    out.print(f"of the {every} pictures without them, which it learnt from, it calls {called}")
    if pictures is not None:
        out.print(f"pictures: {pictures}", markup=False)
