"""`headwater status` and `card`: how sets fare in service, and what a model in service is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command.options import JsonOption, SetArgument, command_group, takes
from flows.runtime.console import duration, out, table
from flows.runtime.given import Given
from headwater.errors import DataError
from headwater.text import shown

if TYPE_CHECKING:
    from flows.watching.status import SetStatus, Status

commands = command_group("How sets fare.")


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def status(
    given: Given,
    image_set: Annotated[
        str | None, typer.Argument(metavar="[SET]", help=r"Of one set. \[default: of all]")
    ] = None,
    json_: JsonOption = False,
    prometheus: Annotated[
        str | None,
        typer.Option(
            "--prometheus", metavar="FILE",
            help="Write the figures for Prometheus' textfile collector; - prints them.",
        ),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Log the days that are over to MLflow, a step a day.")
    ] = False,
) -> None:  # fmt: skip
    """Say how the sets fare in service, what is wrong, and the remedy.

    The model in service, the last retraining, what waits for a review, what was flagged beside
    what is promised. Status 0 where all is well, 3 where something needs a person.
    """
    _, home = given.open(write=False)
    if not (home.root.is_dir() or home.store_url or home.tracking_url):
        raise DataError(
            f"{home.root}: no such home",
            expected="a folder that a command of Headwater made",
            remedy="check --home or HEADWATER_HOME; the first `headwater run` makes one",
        )
    from flows.watching.status import status_of

    found = status_of(home, [image_set] if image_set else ())
    if log:
        from flows.watching.study import log_days

        log_days(home, found)
    if prometheus is not None:
        _prometheus(found, prometheus)
    if json_:
        out.print_json(data=found.to_json())
    elif prometheus is None:
        _print(found)
    raise typer.Exit(found.status)


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def card(
    image_set: SetArgument,
    given: Given,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there instead.")
    ] = None,
) -> None:
    """Print the card of the model in service: data, figures, promise, limits, where it comes from.

    Markdown, made from what was recorded alone. Each promotion keeps it with the model's run, as
    `card.md`.
    """
    _, home = given.open(write=False)
    from flows.retraining.locked import locked_images
    from flows.use.models.card import card_of
    from headwater.files import write_text

    text = card_of(home, image_set, locked_images(home, image_set))
    if file is None:
        out.print(text, markup=False)
        return
    try:
        write_text(file, text + "\n")
    except OSError as error:
        raise DataError(
            f"{file} cannot be written: {error.strerror}", expected="a file that can be written"
        ) from error
    out.print(f"wrote {file}", markup=False)


def _prometheus(found: Status, file: str) -> None:
    from flows.watching.metrics import text_of, write_textfile

    if file == "-":
        typer.echo(text_of(found), nl=False)
        return
    try:
        write_textfile(found, Path(file))
    except OSError as error:
        raise DataError(
            f"{file} cannot be written: {error.strerror or error}",
            expected="a file in the folder that the node exporter reads (--collector.textfile)",
        ) from error


def _print(found: Status) -> None:
    if found.sets:
        columns = ["set", "in service", "since (UTC)", "last retraining", "took", "next", "waiting",
                   "flagged, 7 days", "false alarms", "promised"]  # fmt: skip
        out.print(table(columns, [_row(one) for one in found.sets], f"{found.home}"))
    else:
        out.print(f"{found.home} has no sets", markup=False)
    for name, wrong in (("", found.wrong), *((s.image_set, s.wrong) for s in found.sets)):
        for one in wrong:
            about = f"{shown(name)}: " if name else ""
            out.print(f"{about}{one.what}: {one.said}\n  remedy: {one.remedy}", markup=False)
    if not found.status:
        out.print("all is well")


def _row(one: SetStatus) -> list[object]:
    champion, last, service = one.champion or {}, one.retrained or {}, one.service
    model = f"{champion['model']} v{champion['version']}" if champion else None
    since = (champion.get("since") or "")[:16].replace("T", " ") or None
    retrained = f"{last['what']}, {last['start'][:16].replace('T', ' ')}" if last else None
    took = None if last.get("seconds") is None else duration(last["seconds"])
    flagged = alarms = promised = None
    if service is not None and service.answers:
        flagged = f"{service.flagged} of {service.answers}, {service.share:.1%}"
    if service is not None and service.promised is not None:
        promised = f"{service.promised:.1%}"
    rate = service.rates.get("false_positive_rate", {}) if service is not None else {}
    if rate.get("rate") is not None:  # by what people say
        alarms = f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"
    coming = (one.next or "")[:16].replace("T", " ") or None
    return [one.image_set, model, since, retrained, took, coming, one.waiting, flagged, alarms,
            promised]  # fmt: skip
