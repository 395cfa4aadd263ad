"""The options of the commands, made from the settings, and how a command line's mistakes are told.

A command says which group it is of and gets what was given; see `takes`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows.runtime.given import Given
from flows.runtime.settings import LAST, Setting, every_setting
from flows.runtime.values import ALL
from headwater.errors import ConfigError

#: Exit status of work that was done but for something set aside.
SET_ASIDE = 3

SetArgument = Annotated[str, typer.Argument(metavar="SET", help="Name of the image set.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
SnapshotOption = Annotated[
    str | None, typer.Option("--snapshot", help=r"Snapshot id or tag. \[default: the newest]")
]
VersionOption = Annotated[
    str | None, typer.Option(help=r"Model version or alias. \[default: champion, else the newest]")
]
RehashOption = Annotated[
    bool, typer.Option("--rehash", help="Read every file, even those that look unchanged.")
]


def command_group(text: str) -> typer.Typer:
    """Return a group of commands with this help."""
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


#: Options that are no settings: they say where settings are, or are about several.
_CONFIG = typer.Option(
    "--config", help=escape("Settings file. [default: ./headwater.yaml if there is one]")
)
_TUNED = typer.Option(
    "--set", metavar="HEAD.KEY=VALUE", help="A head's setting, e.g. f2r.alpha=0.8. Repeatable."
)


def takes(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in place of its parameter `given`, the options of the settings of `groups`.

    The function gets all of them in one `Given`, its argument `image_set` included.
    """
    settings = [s for s in every_setting() if set(groups) & set(s.groups)]
    assert settings, f"no setting is of the groups {groups}"

    def dress(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(inspect.signature(command, eval_str=True).parameters)
        options = {s.path.replace(".", "__"): s for s in settings}
        more = {name: _annotation(setting) for name, setting in options.items()}
        if "heads" in more:
            more["tuned"] = Annotated[list[str] | None, _TUNED]
        if groups != ("demo",):
            more["config"] = Annotated[Path | None, _CONFIG]
        named = inspect.Parameter.KEYWORD_ONLY
        made = [inspect.Parameter(k, named, default=None, annotation=a) for k, a in more.items()]
        shown = [
            parameter
            for name, mine in own.items()
            for parameter in (made if name == "given" else [mine.replace(kind=named)])
        ]

        @functools.wraps(command)
        def run(**said: Any) -> None:
            values = {options[k].path: said[k] for k in options if said[k] is not None}
            if "image_set" in said:
                values["image_set"] = said["image_set"]
            tuned = tuple(said.get("tuned") or ())
            given = Given(values, tuned, said.get("config"), own_process=True)
            command(given=given, **{k: v for k, v in said.items() if k in own})

        # Typer breaks the lines of all paragraphs but the first where the source does.
        paragraphs = (inspect.getdoc(command) or "").split("\n\n")
        run.__doc__ = "\n\n".join(" ".join(one.split()) for one in paragraphs)
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        return run

    return dress


def _annotation(setting: Setting) -> Any:
    """Return a setting's option; values stay text until all sources are put together."""
    many = setting.kind == "KEY=VALUE"
    text = str(setting.field.description) + " Repeatable." * many
    if setting.default not in (LAST, "none"):
        text += f" [default: {setting.default}]"
    metavar = setting.kind if many else f"<{setting.kind}>"
    option = typer.Option(setting.option, metavar=metavar, help=escape(text))
    return Annotated[list[str] | None if many else str | None, option]


#: What typer raises for a command line it cannot read, wherever this version of it keeps the class.
UsageError: Any = typer.BadParameter.__base__


def explain_usage(error: Any) -> ConfigError | None:
    """Return a `UsageError` in the form of all errors; None where help was all there was to say."""
    from pydantic import ValidationError

    from flows.runtime.sources import expectation

    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    culprit, expected, cause = error.message.rstrip("."), "", error.__cause__
    commands = getattr(getattr(error.ctx, "command", None), "commands", None)
    if isinstance(cause, ValidationError):
        problem = cause.errors()[0]
        culprit = f"option {error.param.opts[0]} {problem['input']}"
        expected = expectation(problem["msg"])
    elif near := getattr(error, "possibilities", None):
        expected = f"perhaps {', '.join(sorted(near))}"
    elif commands:
        expected = f"one of {', '.join(sorted(commands))}"
    elif error.ctx:
        culprit = error.format_message().rstrip(".")
        expected = " ".join(error.ctx.get_usage().removeprefix("Usage: ").split())
    culprit = culprit[0].lower() + culprit[1:]
    command = error.ctx.command_path if error.ctx else "headwater"
    return ConfigError(culprit, expected=expected, remedy=f"{command} --help says what there is")


#: Options that may stand without a value, and what they then mean.
_ALONE = {"--combine": ALL}


def completed(words: Sequence[str]) -> list[str]:
    """Return a command line in which every option that takes a value has one.

    Examples
    --------
    >>> completed(["run", "bolts", "--combine", "--seed", "3"])
    ['run', 'bolts', '--combine', 'all', '--seed', '3']
    """
    made: list[str] = []
    for word, after in zip(words, [*words[1:], "-"], strict=True):
        made.append(word)
        if word in _ALONE and after.startswith("-"):
            made.append(_ALONE[word])
    return made


def check_once(command: Any, words: Sequence[str]) -> None:
    """Raise `ConfigError` for an option of one value that a command line has twice.

    Click takes the last one without a word. Options without a value, and those that may be
    repeated, are let be.
    """
    while words and (below := getattr(command, "commands", {}).get(words[0])) is not None:
        command, words = below, words[1:]
    words = words[: words.index("--")] if "--" in words else words
    named = [word.partition("=")[0] for word in words if word.startswith("--")]
    for option in command.params:
        single = not getattr(option, "multiple", False) and not getattr(option, "is_flag", False)
        found = [name for name in named if name in option.opts]
        if single and len(found) > 1:
            more = " or a list, A,B" if found[0] == "--heads" else ""
            raise ConfigError(f"{found[0]} is given twice", expected=f"one value{more}")
