"""The `headwater` command. Heavy libraries are imported inside the commands, so that help is quick.

Exit status: 0 all went well, 1 a fault of Headwater's own, 2 a mistake that the message explains,
3 the work was done but something was set aside (a broken image, a damaged row), 130 Ctrl-C,
143 SIGTERM.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from flows.command import ahead, begin, job, look, pairs, store
from flows.command.keep import (
    bundle,
    homes,
    made,
    removing,
    retraining,
    serve,
    service,
    trace,
    watching,
)
from flows.command.options import UsageError, check_once, command_group, completed, explain_usage
from flows.command.pages import report
from flows.runtime.arguments import hide_in_tracebacks, hide_passwords
from flows.runtime.console import err, out
from flows.runtime.signals import end_now, sigterm_interrupts, was_asked
from headwater.errors import HeadwaterError
from headwater.version import __version__

app = command_group(
    "Visual inspection from normal images: features once, many heads, traceable models."
)
app.info.epilog = "Begin with `headwater demo`, then `headwater run my-set --images folder`."
PARTS = (
    job, ahead, retraining, serve, service, watching, removing, bundle, look, report, trace, made,
    homes, begin,
)  # fmt: skip
for part in PARTS:
    app.add_typer(part.commands)
app.add_typer(homes.home, name="home", rich_help_panel="Look")
app.add_typer(store.commands, name="store", rich_help_panel="Look")
app.add_typer(pairs.commands, name="pairs", rich_help_panel="Begin")


def _version(value: bool) -> None:
    if value:
        out.print(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors that a user can cure are printed without a traceback.

    Those that typer finds in the command line are printed as all others are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal of Latin-1 lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    for note in hide_passwords(os.environ):
        err.print(note, markup=False)
    hide_in_tracebacks()
    try:
        with sigterm_interrupts():
            # Called as it is: typer's own call would put its hook for tracebacks over ours.
            command = typer.main.get_command(app)
            words = completed(sys.argv[1:])
            check_once(command, words)
            status = command(words, standalone_mode=False)
    except UsageError as error:
        if (mistake := explain_usage(error)) is not None:
            err.print(f"error: {mistake}", markup=False)
        sys.exit(2)
    except HeadwaterError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        # A reader that has seen enough, as `head`, is no fault; typer makes it one.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        status = 0
    except BrokenPipeError:
        status = 0
    except Exception:
        if not was_asked():  # else: what was told to end with us is missed on the way out
            raise
        status = 130
    if status == 130:  # typer answers Ctrl-C itself, without a word
        err.print("stopped; what was committed is kept, the same command goes on from there")
        if was_asked():
            end_now()
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
