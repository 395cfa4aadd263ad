"""`headwater promote`, `rollback` and `history`: the model in service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.command.options import SET_ASIDE, JsonOption, SetArgument, command_group, takes
from flows.runtime.console import err, out, table
from flows.runtime.given import Given
from headwater.text import shown

commands = command_group("The model in service.")
WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept in the history.")]
WhoOption = Annotated[
    str, typer.Option("--by", metavar="NAME", help=r"Who says so. \[default: you]")
]


@commands.command(rich_help_panel="The job")
@takes("models")
def promote(
    image_set: SetArgument,
    model: Annotated[
        str,
        typer.Argument(metavar="HEAD[@VERSION]", help="Without a version its champion or newest."),
    ],
    given: Given,
    why: WhyOption = "",
    who: WhoOption = "",
    json_: JsonOption = False,
) -> None:
    """Put a head's model in service: `predict SET` takes it unless it is told another.

    The version that was in service becomes `previous`; `headwater rollback SET` puts it back.
    """
    settings, home = given.open()
    from flows.retraining.locked import locked_images
    from flows.use.models.service import promote as put

    hooks, locked = settings.hooks, locked_images(home, image_set)
    _tell(
        image_set,
        put(home, image_set, model, why=why, who=who, hooks=hooks, locked=locked, tell=_note),
        json_,
    )


@commands.command(rich_help_panel="The job")
@takes("models")
def rollback(
    image_set: SetArgument,
    given: Given,
    to: Annotated[
        str, typer.Option("--to", metavar="N", help="Version in service, as `history` has it.")
    ] = "",
    why: WhyOption = "",
    who: WhoOption = "",
    json_: JsonOption = False,
) -> None:
    """Put the model in service again that was there before; once more goes back one more."""
    settings, home = given.open()
    from flows.use.models.service import rollback as back

    hooks = settings.hooks
    _tell(image_set, back(home, image_set, why=why, who=who, to=to, hooks=hooks, tell=_note), json_)


@commands.command(rich_help_panel="Look")
@takes("models")
def history(image_set: SetArgument, given: Given, json_: JsonOption = False) -> None:
    """Print what was put in service and taken back: who, when, why, and the model's figures.

    Status 3 where what was in service is gone.
    """
    _, home = given.open(write=False)
    from flows.use.models.service import history_of

    events, wrong = history_of(home, image_set)
    if json_:
        out.print_json(data={"image_set": image_set, "history": events, "error": wrong})
        raise typer.Exit(SET_ASIDE if wrong else 0)
    if not events:
        out.print(
            f"{image_set}: nothing was ever in service; headwater promote {image_set} HEAD",
            markup=False,
        )
        return
    figures = {
        "image_auroc": "image AUROC",
        "recall": "image recall",
        "false_positive_rate": "image FPR",
    }
    rows = [
        [
            f"version {e['to']}" + " (now)" * e["now"] + " (deleted)" * e["deleted"],
            e["what"],
            f"{e['head']} v{e['model_version']}",
            *(e["metrics"].get(name) for name in figures),
            e["when"][:16].replace("T", " "),
            shown(e["who"]),
            shown(e["why"]),
        ]
        for e in events
    ]
    columns = ["in service", "", "model", *figures.values(), "when (UTC)", "who", "why"]
    out.print(table(columns, rows, f"{image_set}: in service, newest first"))
    if wrong:
        err.print(f"error: {wrong}", markup=False)
        raise typer.Exit(SET_ASIDE)


def _note(line: str) -> None:
    err.print(f"note: {line}", markup=False)


def _tell(image_set: str, event: Mapping[str, Any], json_: bool) -> None:
    if json_:
        out.print_json(data={"image_set": image_set, **event})
        return
    model = f"{event['model']} version {event['model_version']}"
    if not event["changed"]:
        out.print(f"{image_set}: {model} is in service already, as version {event['to']}")
        return
    was = f", instead of version {event['from']}" if event["from"] else ""
    out.print(f"{image_set}: version {event['to']}, {model}, is in service{was}", markup=False)
