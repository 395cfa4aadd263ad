"""The settings as a page and as a file to fill in, both made from what is set where."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from flows.runtime.settings import LAST, Setting, Settings, every_setting

_HEAD = """\
# Settings

<!-- Made by `headwater settings --markdown > docs/settings.md`; a test compares. -->

A setting can be given in several places. What comes first in this list holds:

1. the option of a command, or the keyword in Python: the option's name (`target_fpr=0.1`), or the
   key's where there is no option (`training_held_out=0.2`);
2. its environment variable;
3. its key in `headwater.yaml` (`./headwater.yaml`, or the file that `--config` names). Relative
   paths in the file are relative to it. `headwater init` writes one with every key;
4. for what is marked with *, the value at the set's last extraction, whatever defaults have become;
5. the default.

What is given counts even where it is the default's own value: on a set last run with resnet50,
`--backbone resnet18` is resnet18, and `size: null` in the file is no size. The one of `images`,
`normal` and `pairs` that is given takes away the others where they come from further down the list.
Weights and options belong to a backbone: where another one is given, the set's last are left.

`HEADWATER_HOME` and `HEADWATER_ARTIFACTS` are older and come after the file. So does
`HEADWATER_WEIGHTS`, a file or folder in which a backbone's weights are looked for if nothing names
them. Lists and mappings in environment variables are written as JSON; an empty variable gives
nothing. Dask's workers and Prefect's flows get settings made whole and read no variables.
"""
_COLUMNS = ("key", "what", "type and limits", "default", "option", "environment variable")


def settings_page(root: Any) -> str:
    """Return the page docs/settings.md.

    Parameters
    ----------
    root
        The command with all its commands, as typer makes it.
    """
    takers = _takers(root)
    parts = [_HEAD.rstrip()]
    for section, title, settings in _sections():
        parts.append(f"\n## {title.rstrip('.')}" + (f" (`{section}`)" if section else "") + "\n")
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
    return "\n".join(parts) + "\n"


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
