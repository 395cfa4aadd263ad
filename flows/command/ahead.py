"""`headwater plan` and `headwater doctor`: before a long job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from flows.command.options import JsonOption, SetArgument, command_group, takes
from flows.runtime.console import Reporter, duration, err, out, size, table
from flows.runtime.given import Given

if TYPE_CHECKING:
    from flows.use.forecast import Forecast

commands = command_group("Before a long job.")
_TO_DO = ("to be trained", "to be joined")


@commands.command(rich_help_panel="The job")
@takes("run")
def plan(image_set: SetArgument, given: Given, json_: JsonOption = False) -> None:
    """Say what `run` would do and cost, measured on a few images; nothing is changed.

    Takes the options of `run`. Exit status 2 where the features would not fit on the disk.
    """
    settings, home = given.open(write=False)
    from flows.use.forecast import foresee

    with Reporter(quiet=json_).live() as reporter:
        ahead = foresee(settings, home, reporter)
    if json_:
        out.print_json(data=ahead.to_json())
    else:
        _show(ahead)
    ahead.check()


@commands.command(rich_help_panel="Look")
@takes("train")
def doctor(given: Given, json_: JsonOption = False) -> None:
    """Look at this machine, the home and the servers named: what is wrong, and what to do.

    Exit status 0 where nothing is wrong (notes may be), 2 where something is. Nothing is changed.
    """
    settings, home = given.open(write=False)
    from flows.use.doctor import Finding, examine

    found: list[Finding] = []
    marks = {"ok": "ok   ", "note": "note ", "wrong": "wrong"}
    for one in examine(settings, home):
        found.append(one)
        if not json_:
            out.print(f"{marks[one.state]}  {one.topic}: {one.said}", markup=False)
            if one.remedy:
                out.print(f"         {one.remedy}", markup=False)
    wrong = sum(one.state == "wrong" for one in found)
    if json_:
        out.print_json(data={"wrong": wrong, "findings": [one.to_json() for one in found]})
    elif wrong:
        err.print(f"{wrong} of {len(found)} findings are wrong", markup=False)
    raise typer.Exit(2 if wrong else 0)


def _show(ahead: Forecast) -> None:
    """Print a forecast."""
    out.print(ahead.line(), markup=False)
    if ahead.extractions:
        rows = [
            [
                one.store,
                layer.name,
                "x".join(map(str, layer.shape)),
                layer.stored,
                layer.missing,
                size(layer.bytes),
            ]
            for one in ahead.extractions
            for layer in one.layers
        ]
        columns = ["store", "layer", "shape", "stored", "to compute", "disk"]
        out.print()
        out.print(table(columns, rows))
        for one in ahead.extractions:
            if one.seconds_per_image is not None and one.seconds is not None:
                a_row = "a tile" if one.tiles else "an image"
                views = f", {one.views} views {a_row}" if one.views else ""
                out.print(
                    f"{one.store}: {one.backbone} on {one.device} in {one.precision}{views}: "
                    f"{1000 * one.seconds_per_image:.0f} ms {a_row} here, "
                    f"about {duration(one.seconds)} for {one.todo:,}",
                    markup=False,
                )
    trainings = [
        [
            one.head,
            one.preset,
            f"found in MLflow: {one.model}" if one.model else _TO_DO[one.joins],
            None if one.joins or one.seconds is None else f"about {duration(one.seconds)}",
            one.basis,
        ]
        for one in ahead.trainings
    ]
    out.print()
    out.print(table(["head", "preset", f"on {ahead.device}", "time of the fit", ""], trainings))
    for path, reason in ahead.set_aside[:20]:
        err.print(f"would be set aside: {path}: {reason.splitlines()[0]}", markup=False)
    for note in ahead.notes[:20]:
        err.print(f"note: {note}", markup=False)
