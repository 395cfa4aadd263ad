"""`headwater bundle`: a registered model as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command.options import JsonOption, command_group, takes
from flows.runtime.console import out, size
from flows.runtime.given import Given

commands = command_group("A model as one file.")

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="SET.HEAD, SET.HEAD/VERSION or SET.HEAD@ALIAS.")
]


@commands.command(rich_help_panel="The job")
@takes("models")
def bundle(
    model: ModelArgument,
    given: Given,
    target: Annotated[
        Path | None, typer.Option("--out", help=r"File to write. \[default: SET.HEAD-vN.zip]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_: JsonOption = False,
) -> None:
    """Write a registered model as one file that predicts wherever Headwater is installed.

    `headwater predict --model FILE IMAGES` needs no home, no weights and no network.
    """
    _, home = given.open(write=False)
    from flows.use.bundle import bundle as write

    facts = write(home, model, target, replace=force)
    if json_:
        out.print_json(data=facts)
        return
    told = f"{facts['model']} version {facts['version']}, {size(facts['bytes'])}"
    out.print(f"wrote {facts['file']}: {told}", markup=False)
    out.print(f"  headwater predict --model {facts['file']} IMAGES", markup=False)
