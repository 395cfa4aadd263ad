"""`headwater serve` and `feedback`: sets that retrain, models that answer, what people say."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from flows.command.keep.service import WhoOption
from flows.command.options import SET_ASIDE, JsonOption, SetArgument, command_group, takes
from flows.runtime.console import Reporter, err, out
from flows.runtime.given import Given
from headwater.errors import ConfigError
from headwater.text import shown

commands = command_group("In service.")


@commands.command(rich_help_panel="The job")
@takes("store", "models", "serve")
def serve(
    image_sets: Annotated[
        list[str] | None, typer.Argument(metavar="SET...", help="Whose models answer.")
    ] = None,
    *,
    given: Given,
    http: Annotated[
        bool, typer.Option("--http", help="Answer about pictures over HTTP, by the champions.")
    ] = False,
) -> None:
    """Retrain the sets of headwater.yaml by themselves, or, with --http, answer about pictures.

    Without --http the section `schedule` of headwater.yaml names the sets: a time as cron writes
    it, an inbox folder, or both (docs/scheduler.md). What settles in an inbox is taken into the
    set's images.

    With --http the models in service answer (docs/serving.md). POST an image's bytes to
    /sets/SET/predict. What is said is kept, pictures by the settings of `keep`. A new champion is
    taken within seconds, without a gap. There are no users and no passwords: it answers on this
    machine alone, unless --host says otherwise.
    """
    if not http:
        _retrain(image_sets or (), given)
    if not image_sets:
        raise ConfigError("serve --http", expected="one SET or more")
    from storage.store.layout import check_set_name

    for name in image_sets:
        check_set_name(name)
    settings, home = given.open()
    from flows.serving.server import serve_http
    from flows.watching.metrics import MetricsEndpoint
    from headwater.listening import on_loopback

    def tell(line: str) -> None:
        err.print(shown(line, lines=True), markup=False)

    def ready(address: str) -> None:
        out.print(f"{', '.join(image_sets)}: {address} (Ctrl-C ends it)", markup=False)
        if not on_loopback(settings.serve.host):
            err.print(
                f"note: it answers to whoever reaches {settings.serve.host}, without a password "
                "and in clear text: put it behind a proxy that has both (docs/serving.md)",
                markup=False,
            )

    # How a server ends, by SIGTERM, too: all that was in hand was answered.
    with contextlib.suppress(KeyboardInterrupt):
        serve_http(
            home,
            image_sets,
            settings,
            ready=ready,
            tell=tell,
            metrics=MetricsEndpoint(home, image_sets),
        )
    err.print("ended; what was in hand was answered")
    sys.stdout.flush()
    os._exit(0)  # nothing is left to be done, and Python's own end of so much takes seconds


def _retrain(image_sets: Sequence[str], given: Given) -> NoReturn:
    """Retrain the scheduled sets until told to end."""
    if image_sets:
        raise ConfigError(
            f"serve {' '.join(image_sets)}: which sets are retrained is said in headwater.yaml",
            expected="headwater serve, or headwater serve --http SET",
        )
    settings, home = given.open()
    from flows.scheduling.serve import serve as do

    default = Path("headwater.yaml")
    config = given.config or (default if default.is_file() else None)
    do(settings, home, config, Reporter())


@commands.command(rich_help_panel="The job")
@takes("models")
def feedback(
    image_set: SetArgument,
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="A file, 8 digits or more of its digest, or an answer's number."
        ),
    ],
    answer: Annotated[
        str, typer.Argument(metavar="[ok|defect[:KIND]|unsure]", help="What it is.")
    ] = "",
    *,
    given: Given,
    who: WhoOption = "",
    take_back: Annotated[
        bool, typer.Option("--take-back", help="What was said of it does not hold.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what a picture is that the model in service judged.

    A false alarm may train, after `headwater review SET`; a defect never does: it goes to the known
    defects, or to the test images for the next `headwater lock SET`. Status 3 where something is
    left to be done.
    """
    settings, home = given.open()
    from flows.serving.feedback import Feedback
    from flows.serving.kept import Kept
    from headwater.files import read_regular

    content, file = None, Path(image)
    if file.is_file():
        content = read_regular(file, int(settings.serve.max_mb * 1e6))
    with Kept(home, image_set, settings.keep) as kept:
        done = Feedback(home, image_set, kept).say(
            image, answer, by=who, take_back=take_back, content=content
        )
    told = done.to_json()
    if json_:
        out.print_json(data=told)
        raise typer.Exit(SET_ASIDE if done.notes else 0)
    what = told["answer"] or "nothing said of it any more"
    out.print(f"{image_set}: {told['sha256'][:12]} ({told['verdict']}): {what}", markup=False)
    if done.put:
        also = f"; it trains when headwater review {image_set} accepts it" if done.waits else ""
        out.print(f"  put among the set's images: {told['put']}{also}", markup=False)
    for note in told["notes"]:
        err.print(f"note: {note}", markup=False)
    raise typer.Exit(SET_ASIDE if done.notes else 0)
