"""`headwater home`, `home check` and `delete`: what is in a home, what is broken, what may go."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command.options import SET_ASIDE, JsonOption, command_group, takes
from flows.runtime.console import counted, err, out, size, table
from flows.runtime.given import Given
from headwater.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flows.runtime.home import Home

commands = command_group("What may go.")
home = command_group(
    "Say what is in the home and how large it is; `home check` finds what is broken."
)


def _bytes(count: int | None) -> str:
    return "elsewhere" if count is None else size(count)


def _there(given: Given) -> Home:
    """Return the home; one that is not there is likely misspelt, and neither empty nor sound."""
    _, place = given.open(write=False)
    if not (place.root.is_dir() or place.store_url or place.tracking_url):
        raise DataError(
            f"{place.root}: no such home",
            expected="a folder that a command of Headwater made",
            remedy="check --home or HEADWATER_HOME; the first `headwater run` makes one",
        )
    return place


@home.callback(invoke_without_command=True, no_args_is_help=False)
@takes("store", "models")
def show(context: typer.Context, given: Given, json_: JsonOption = False) -> None:
    """Say what is in the home and how large it is; `home check` finds what is broken."""
    if context.invoked_subcommand:
        return
    place = _there(given)
    from flows.use.inventory import inventory

    parts = inventory(place)
    total = sum(part.bytes or 0 for part in parts)
    if json_:
        rows = [dataclasses.asdict(part) for part in parts]
        out.print_json(data={"home": str(place.root), "bytes": total, "parts": rows})
        return
    if not parts:
        out.print(f"{place.root} is empty", markup=False)
        return
    cells = [[p.what, p.name, p.count, _bytes(p.bytes), p.note] for p in parts]
    columns = ["what", "name", "images, versions or files", "size", ""]
    out.print(table(columns, cells, whole=("name",)))
    out.print(f"\n{place.root}: {size(total)}", markup=False)


@home.command()
@takes("store", "models")
def check(given: Given, json_: JsonOption = False) -> None:
    """Find what is broken: database, stores, models and their hashes, snapshots, images' folders.

    Exit status 3 where something does not work; leftovers alone are no fault.
    """
    place = _there(given)
    from flows.use.soundness import check as findings_of

    found = findings_of(place)
    broken = [one for one in found if one.broken]
    if json_:
        rows = [dataclasses.asdict(one) for one in found]
        out.print_json(data={"home": str(place.root), "sound": not broken, "findings": rows})
    else:
        for one in found:
            out.print(f"{one.what} {one.name}: {one.said}\n  remedy: {one.remedy}", markup=False)
        told = f"{counted(len(broken), 'fault')}" if broken else "nothing is broken"
        out.print(f"{place.root}: {told}", markup=False)
    raise typer.Exit(SET_ASIDE if broken else 0)


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def delete(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="SET; SET.HEAD or SET.HEAD/VERSION; SET/EXTRACTOR."),
    ],
    given: Given,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what a champion or a training needs.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Delete a set, a model or an extractor, after saying what would go."""
    _, place = given.open(write=False)
    from flows.use.delete import plan_deletion

    made = plan_deletion(place, target)
    facts: dict[str, Any] = {
        "target": made.target,
        "parts": [{"what": what, "bytes": count} for what, count in made.parts],
        "bytes": made.bytes,
        "needed": made.needed,
        "notes": made.notes,
    }
    if not json_:
        cells = [[what, _bytes(count)] for what, count in made.parts]
        out.print(table(["what would go", "size"], cells, made.target))
        for note in made.notes:
            err.print(f"note: {note}", markup=False)
    made.check(force=force)
    if not yes:
        if json_ or not sys.stdin.isatty():
            if json_:
                out.print_json(data={**facts, "deleted": False})
            raise ConfigError(
                f"delete {target}: nobody to ask, nothing was deleted", remedy="--yes deletes it"
            )
        if not typer.confirm(f"delete it ({size(made.bytes)})?"):
            out.print("nothing was deleted")
            return
    made.run()
    if json_:
        out.print_json(data={**facts, "deleted": True})
    else:
        out.print(f"deleted {made.target}: {size(made.bytes)}", markup=False)
