"""The settings as a page and as a file to fill in, both made from what is set where."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from flows.runtime.settings import LAST, Setting, Settings, every_setting

_COLUMNS = ("key", "what", "type and limits", "default", "option", "environment variable")


def settings_tables(root: Any) -> str:
    """Return the tables of docs/settings.md, one a section.

    Parameters
    ----------
    root
        The command with all its commands, as typer makes it.
    """
    takers = _takers(root)
    parts = []
    for section, title, settings in _sections():
        parts.append(f"## {title.rstrip('.')}" + (f" (`{section}`)" if section else "") + "\n")
        rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
        for setting in settings:
            taken = setting.option and f"`{setting.option}` ({', '.join(takers[setting.path])})"
            rows.append(
                (
                    f"`{setting.path}`" + " *" * setting.kept,
                    str(setting.field.description),
                    setting.kind,
                    setting.default,
                    taken,
                    f"`{setting.environment}`",
                )
            )
        for row in rows:
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        parts.append("")
    return "\n".join(parts)


def _takers(root: Any) -> dict[str, list[str]]:
    """Return the commands that take each setting; `store` stands for all of its own."""
    found: dict[str, list[str]] = {setting.path: [] for setting in every_setting()}
    for name, command in root.commands.items():
        under = getattr(command, "commands", None) or {"": command}
        for setting in every_setting():
            mine = (setting.path.replace(".", "__"), [setting.option])
            having = [n for n, c in under.items() if mine in [(p.name, p.opts) for p in c.params]]
            every = len(having) == len(under)
            found[setting.path] += [name] if every else [f"{name} {one}" for one in having]
    return found


def file_template() -> str:
    """Return `headwater.yaml` with every key, its default and a comment."""
    lines = [
        "# headwater.yaml - every setting with its default. Options on the command line and",
        "# environment variables come before it; relative paths are relative to it.",
    ]
    for section, title, settings in _sections():
        lines += ["", f"{section}:  # {title}" if section else f"# {title}"]
        for setting in settings:
            key, value = setting.path.rpartition(".")[2], setting.field.default
            empty = value in (None, {}) and setting.default not in (LAST, "none")
            line = f"{'  ' * bool(section)}# {key}: {'null' if value is None else value}"
            text = f"{setting.field.description}" + f" [default: {setting.default}]" * empty
            lines.append(f"{line:<31} # {text}")
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """Yield each section's key, its title and its settings; two parts of the file have no key."""
    titles = iter(("The images, and the heads that learn from them.", "Where things are kept."))
    for section, settings in groupby(every_setting(), lambda s: s.path.rpartition(".")[0]):
        model = Settings.model_fields[section].annotation if section else None
        title = next(titles) if model is None else str(inspect.getdoc(model))
        yield section, title, list(settings)
