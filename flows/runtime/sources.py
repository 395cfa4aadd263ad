"""Where settings come from, put over each other: the file, the environment, the caller.

The command line, or the keywords of a Python call, come before environment variables, and these
before `headwater.yaml`; what none of them gives is as it was at the set's last extraction
(`flows.runtime.resolve`), or the default. What is given counts, the default's own value too. The
variables ``HEADWATER_HOME`` and ``HEADWATER_ARTIFACTS`` are older than this order and come after
the file; so does ``HEADWATER_WEIGHTS``, where weights are looked for if nothing names them.

A mistake is told with its place (file and line, option, variable) and the valid choices.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.runtime.settings import Setting, Settings, every_setting
from flows.runtime.values import named_heads
from headwater.errors import ConfigError

Keys = tuple[str, ...]
_FILE = "headwater.yaml"
#: Settings whose environment variables are older than the order of sources.
_AFTER_THE_FILE = ("home", "artifacts")
_PREFIX = "HEADWATER_"
#: One of these that is given takes away the others, where they come from a lesser source.
_INSTEAD = {
    "images": ("normal", "defective", "masks", "pairs"),
    "normal": ("images", "pairs"),
    "pairs": ("images", "normal", "defective", "masks"),
}


@dataclass(frozen=True)
class _Layer:
    """What one source gives, in nested mappings.

    `place` names where a key is given, and `form` a mistake there: ``{place}``, ``{key}``,
    ``{value}``, or ``{word}`` as a shell quotes it.
    """

    data: dict[str, Any]
    place: Callable[[Keys], str]
    form: str

    def depth(self, keys: Keys) -> int:
        """Return how many of these keys, from the first on, are given here."""
        node: Any = self.data
        for n, key in enumerate(keys):
            named = {str(k): v for k, v in node.items()} if isinstance(node, dict) else {}
            if key not in named:
                return n
            node = named[key]
        return len(keys)


def load_settings(
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
    called: Callable[[Setting], str] = lambda setting: f"option {setting.option}",
) -> Settings:
    """Return what the file, the environment and the caller give, each over the one before.

    Parameters
    ----------
    file
        File named by the user; by default ``./headwater.yaml`` if there is one.
    given
        What the caller gives, by dotted keys: ``{"backbone.name": "resnet50"}``; None is nothing.
    called
        How the caller calls a setting, for messages.

    Raises
    ------
    ConfigError
        With the place and the valid choices of every mistake.
    """

    old, new = _variables()
    layers = [
        _Layer(_nested(old), _variable, "{place}={word}"),
        _file_layer(file),
        _Layer(_nested(new), _variable, "{place}={word}"),
        _Layer(_nested(given or {}), lambda keys: called(_at(keys)), "{place} {word}"),
    ]
    merged: dict[str, Any] = {}
    for layer in layers:
        _put_over(merged, layer.data)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, layers) from None


def _at(keys: Keys) -> Setting:
    """Return the setting that a key belongs to."""
    paths = (".".join(keys[:n]) for n in (2, 1))
    return next(s for path in paths for s in every_setting() if s.path == path)


def _variable(keys: Keys) -> str:
    name = _PREFIX + "__".join(keys).upper()
    with contextlib.suppress(StopIteration):
        name = _at(keys).environment
    return f"environment variable {name}"


def _variables() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the environment says, by dotted keys: what comes after the file, and before.

    With two underscores a name can only be meant for a setting: a misspelt one is told.
    """
    known = {setting.environment: setting for setting in every_setting()}
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name, value in os.environ.items():
        if value and name in known:
            path = known[name].path
            (old if path in _AFTER_THE_FILE else new)[path] = value
        elif value and name.startswith(_PREFIX) and "__" in name:
            new[name.removeprefix(_PREFIX).lower().replace("__", ".")] = value
    return old, new


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted keys as nested mappings, None left out."""
    data: dict[str, Any] = {}
    for path, value in values.items():
        if value is not None:
            *sections, key = path.split(".")
            node = data
            for section in sections:
                node = node.setdefault(section, {})
            node[key] = value
    return data


def _put_over(lower: dict[str, Any], upper: Mapping[str, Any]) -> None:
    """Put what a source gives over what those below it do; heads keep the settings of each."""
    for folder in _INSTEAD.keys() & {k for k, v in upper.items() if v is not None}:
        for other in _INSTEAD[folder]:
            lower.pop(other, None)
    for key, value in upper.items():
        before = lower.get(key)
        if key == "heads" and before is not None:
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                before = named_heads(before)
                value = {k: {**before.get(k, {}), **own} for k, own in named_heads(value).items()}
        elif isinstance(value, dict) and isinstance(before, dict):
            value = {**before, **value}
        lower[key] = value


def _file_layer(file: Path | None) -> _Layer:
    """Read the settings file; relative paths in it are relative to it."""
    if file is None and not Path(_FILE).is_file():
        return _Layer({}, lambda keys: _FILE, "")
    path = file or Path(_FILE)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}",
            expected=f"a readable {_FILE}",
            remedy="headwater init writes one with comments",
        ) from None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        data = {} if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{place}: {problem}", expected="valid YAML") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}, line 1", expected="keys and values, such as images: ./photos")
    sections = {s.path.partition(".")[0] for s in every_setting() if "." in s.path}
    data = {k: v for k, v in data.items() if v is not None or k not in sections}
    for setting in every_setting():
        *section, key = setting.path.split(".")
        node = data.get(section[0]) if section else data
        if setting.type is Path and isinstance(node, dict) and isinstance(node.get(key), str):
            node[key] = str(path.absolute().parent / Path(node[key]).expanduser())
    place = f"{path}, line "
    return _Layer(data, lambda keys: f"{place}{_line(root, keys)}", "{place}: {key} = {value}")


def _line(node: yaml.Node | None, keys: Keys) -> int:
    """Return the line of a key, counted from 1, or of the nearest mapping's that holds it."""
    line = 1
    for key in keys:
        found = [(k, v) for k, v in getattr(node, "value", ()) if str(k.value) == key]
        if not found or not isinstance(node, yaml.MappingNode):
            break
        name, node = found[0]
        line = name.start_mark.line + 1
    return line


def _explain(error: ValidationError, layers: list[_Layer]) -> ConfigError:
    """Turn pydantic's findings into one `ConfigError` that lists them all with their places."""
    found: dict[str, list[str]] = {}
    for problem in error.errors():
        keys = tuple(str(k) for k in problem["loc"])
        # The source that gives most of the keys; of several, the one that comes first.
        layer = max(reversed(layers), key=lambda one: one.depth(keys))
        keys = keys[: layer.depth(keys)]
        place, key = layer.place(keys), ".".join(keys)
        if problem["type"] == "extra_forbidden":
            fields = _fields(keys[:-1])
            close = difflib.get_close_matches(keys[-1], fields, n=1)
            text = f"{place}: unknown key {key!r}"
            hint = (f"{close[0]!r}? " if close else "") + "one of " + ", ".join(fields)
        else:
            value = problem["input"]
            text = layer.form.format(
                place=place, key=key, value=repr(value), word=shlex.quote(str(value))
            )
            hint = expectation(problem["msg"])
        found.setdefault(text, []).append(hint)
    # Of what may be one thing or another, pydantic says of each that it is not that.
    texts = [(text, " or ".join(dict.fromkeys(hints))) for text, hints in found.items()]
    several = len(texts) > 1
    return ConfigError(
        "\n".join(f"{t}\n  expected: {h}" if several else t for t, h in texts),
        expected="" if several else texts[0][1],
        remedy="headwater settings lists what can be set; headwater init writes a file with it",
    )


def expectation(message: str) -> str:
    """Return what pydantic expected, from what it says."""
    plain = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return re.sub(r"^.* is not (?=one of )|, unable to parse .*|\.$", "", plain)


def _fields(keys: Keys) -> list[str]:
    model: Any = Settings
    for key in keys:
        model = model.model_fields[key].annotation
    return sorted(model.model_fields)


def by_keyword(group: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Python call gives, by dotted keys, as `load_settings` takes it.

    Parameters
    ----------
    group
        The group of commands that does what the call does: ``run``, ``extract``, ``train``...
    keywords
        By the settings' names in Python (`Setting.keyword`).

    Raises
    ------
    ConfigError
        For a name that is none, with those that are.
    """
    known = {s.keyword: s.path for s in every_setting() if not s.groups or group in s.groups}
    for name in keywords:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"unknown setting {name!r}",
                expected=(f"{close[0]!r}? " if close else "") + "one of " + ", ".join(known),
            )
    return {known[name]: value for name, value in keywords.items()}
