"""`headwater demo`, `init` and `settings`: to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding

from flows.command.options import command_group, takes
from flows.command.settings_page import file_template, settings_tables
from flows.runtime.console import out, table
from flows.runtime.given import Given
from flows.runtime.settings import every_setting
from headwater.errors import ConfigError
from headwater.files import write_text

commands = command_group("Begin.")


@commands.command(rich_help_panel="Begin")
@takes("demo")
def demo(given: Given) -> None:
    """Run the whole job on pictures that come with scikit-image, or on a folder of your own.

    The pictures are photographs with defects drawn into them; the backbone's weights are real.
    """
    from flows.command.demo import run_demo

    raise typer.Exit(run_demo(given))


@commands.command(rich_help_panel="Begin")
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("headwater.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a settings file with every key and a comment to each."""
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already", remedy="--force overwrites it")
    try:
        write_text(path, file_template())
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}",
            expected="a file that can be written",
            remedy="name another file: headwater init FILE",
        ) from None
    out.print(f"wrote {path}: edit it, then `headwater run my-product`", markup=False)


@commands.command(rich_help_panel="Begin")
def settings(
    context: typer.Context,
    word: Annotated[str, typer.Argument(metavar="WORD", help="Only those with this word.")] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As docs/settings.md has them.")
    ] = False,
) -> None:
    """List every setting: option, key of the file, environment variable, limits, default."""
    if markdown:
        print(settings_tables(context.find_root().command), end="")
        return
    found = [
        s for s in every_setting() if word.lower() in f"{s.path} {s.field.description}".lower()
    ]
    # Looking at the heads takes seconds: without a word they are named alone.
    of_heads = []
    if word:
        from flows.command.heads import settings_with

        of_heads = settings_with(word)
    if not found and not of_heads:
        raise ConfigError(
            f"settings {word}: no setting has that word",
            expected="a word of its name or description; without one all are shown",
            remedy="headwater heads lists the heads with their settings",
        )
    if out.is_terminal:
        for one in found:
            told = " ".join(filter(None, (one.option, f"<{one.kind}>")))
            out.print(f"[bold]{one.path}[/bold]  {escape(told)}  default: {escape(one.default)}")
            out.print(Padding(escape(str(one.field.description)), (0, 0, 0, 4)))
        for row in of_heads:
            names, value = ", ".join(row["heads"]), f"default: {row['default']}"
            out.print(f"[bold]heads.HEAD.{row['key']}[/bold]  of {names}  {escape(value)}")
            out.print(Padding(escape(row["about"]), (0, 0, 0, 4)))
    else:
        # A line a setting, for grep.
        rows = [[s.path, s.option, s.kind, s.default, str(s.field.description)] for s in found]
        rows += [
            [
                f"heads.{'|'.join(row['heads'])}.{row['key']}",
                f"--set HEAD.{row['key']}=VALUE",
                "",
                row["default"],
                row["about"],
            ]
            for row in of_heads
        ]
        columns = ["key", "option", "type and limits", "default", "what"]
        out.print(table(columns, rows, whole=("key",)))
    if of_heads:
        out.print("\nsettings of heads: --set HEAD.KEY=VALUE, or under heads: in headwater.yaml")
    else:
        out.print("\nsettings of heads, such as score: headwater heads, docs/heads.md")
    out.print(
        "environment: HEADWATER_ and the key in capitals, __ for the dot; see docs/settings.md"
    )
