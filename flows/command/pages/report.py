"""`headwater report`: one page about a set's models; and how a page is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command.options import JsonOption, SetArgument, command_group, takes
from flows.runtime.console import Reporter, err, out, size
from flows.runtime.given import Given
from headwater.text import shown

commands = command_group("Pages.")


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def report(
    image_set: SetArgument,
    given: Given,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODELS", help="These, as f2r@2 padim; else the newest of each."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help=r"Page. \[default: in home]")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Pictures of test samples at most.")] = 500,
    json_: JsonOption = False,
) -> None:
    """Write one page about a set's models: figures, thresholds to move, pictures, odd normals.

    The page is a file of its own that a browser shows without a network; it is also kept with the
    MLflow run of the command that trained the models.
    """
    _, home = given.open(write=False)
    from flows.use.report.write import write_report

    with Reporter(quiet=json_).live() as reporter:
        made = write_report(home, image_set, reporter, file=file, models=models or (), most=most)
    if json_:
        out.print_json(data=made.to_json())
        return
    for note in made.notes:
        err.print(f"note: {note}", markup=False)
    show_page(made.file)


def show_page(file: Path) -> None:
    """Say where a page is and how large."""
    out.print(f"page: {shown(file)} ({size(file.stat().st_size)})", markup=False)
