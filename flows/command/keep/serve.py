"""`headwater serve`: sets that are retrained by themselves."""

from __future__ import annotations

from pathlib import Path

from flows.command.options import command_group, takes
from flows.runtime.console import Reporter
from flows.runtime.given import Given

commands = command_group("In service.")


@commands.command(rich_help_panel="The job")
@takes("store", "models")
def serve(given: Given) -> None:
    """Retrain the sets of headwater.yaml by themselves, at their times and as images come in.

    The section `schedule` names the sets: a time as cron writes it, an inbox folder, or both. What
    settles in an inbox is taken into the set's images. Runs until it is told to end.
    """
    settings, home = given.open()
    from flows.scheduling.serve import serve as do

    default = Path("headwater.yaml")
    do(settings, home, given.config or (default if default.is_file() else None), Reporter())
