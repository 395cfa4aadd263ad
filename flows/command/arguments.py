"""What must not stay in a command line, which every user of a machine sees while a command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

#: Options whose addresses may hold a password, and the variables that say the same.
_OPTIONS = {"--tracking": "HEADWATER_TRACKING"}
_NOTE = (
    "note: {option} held a password; the list of processes showed it until now, and your shell may "
    "keep it. {variable}, {variable}_FILE or headwater.yaml give it unseen"
)


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the arguments without addresses that hold a password, these as variables, and notes.

    Examples
    --------
    >>> left, variables, _ = without_passwords(["run", "s", "--tracking", "http://me:word@host"])
    >>> left, variables
    (['run', 's'], {'HEADWATER_TRACKING': 'http://me:word@host'})
    """
    left: list[str] = []
    variables: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option in _OPTIONS and not equals and rest:
            value = rest[0]
        if option not in _OPTIONS or not _has_password(value):
            left.append(word)
            continue
        if not equals:
            rest.pop(0)
        variables[_OPTIONS[option]] = value
    options = {variable: option for option, variable in _OPTIONS.items()}
    notes = [_NOTE.format(option=options[v], variable=v) for v in variables]
    return left, variables, notes


def _has_password(address: str) -> bool:
    from headwater.addresses import bare

    return "://" in address and bare(address) != address


def hide_passwords(environment: Mapping[str, str]) -> list[str]:
    """Start this process anew, under its number, where its command line holds a password.

    A process cannot change what others see of its command line; the program that takes its place
    begins with another one. Returns notes to print, where that was done or could not be.
    """
    if not any("://" in word for word in sys.argv):
        return []
    left, variables, notes = without_passwords(sys.argv)
    if not variables:
        return []
    count = len(sys.argv) - 1
    if len(sys.orig_argv) <= count or sys.orig_argv[-count:] != sys.argv[1:]:
        return notes  # called from another program: the command line is not ours
    command = [sys.executable, *sys.orig_argv[1:-count], *left[1:]]
    for variable in variables:
        environment = {k: v for k, v in environment.items() if k != f"{variable}_FILE"}
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    os.execve(command[0], command, {**environment, **variables})


def hide_in_tracebacks() -> None:
    """Have a fault's traceback show no password."""
    import traceback
    from types import TracebackType

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from headwater.addresses import hidden

        sys.stderr.write(hidden("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show
