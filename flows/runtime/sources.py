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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from flows.runtime.documents import read_document
from flows.runtime.settings import Setting, Settings, every_setting
from flows.runtime.values import named_heads
from headwater.errors import ConfigError, several
from headwater.files import expand_user

_FILE = "headwater.yaml"
_PREFIX = "HEADWATER_"
#: Valid names that are not all told where one of them is near.
_MANY = 20
#: What is settled when a home is opened, or is a call's own argument.
_OF_THE_HOME = ("home", "store", "tracking", "artifacts", "image_set")
_SECTIONS = {s.path.partition(".")[0] for s in every_setting() if "." in s.path}
#: What pydantic says, and what a person would.
_RAW = {
    r"^Input is not a valid path for .*|^a valid path for .*": "a path",
    r"^a valid dictionary( or instance of \w+)?": "keys with values, such as seed: 3",
}
#: Settings that are places on the disk, or may be.
_PATHS = {s.path for s in every_setting() if s.type is Path} | {"store", "artifacts"}
#: How a mistake in what the caller gave is told.
_OWN = "{place}{word}"
#: Variables that are no settings: where weights lie, and what Kubernetes sets for a service that
#: is called headwater.
_NO_SETTING = re.compile(
    r"HEADWATER_(WEIGHTS|TEST_.*|(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_.*)?))"
)
#: Settings whose environment variables are older than the order of sources.
_AFTER_THE_FILE = ("home", "artifacts")
#: One of these that is given takes away the others, where they come from a lesser source.
_OF_LISTS = ("layout", "test_list", "list_root")
_INSTEAD = {
    "images": ("normal", "defective", "masks", "test_normal", "validation", "pairs", *_OF_LISTS),
    "normal": ("images", "pairs", *_OF_LISTS),
    "pairs": ("images", "normal", "defective", "masks", "test_normal", "validation", *_OF_LISTS),
}


@dataclass(frozen=True)
class _Layer:
    """What one source gives, by dotted keys, and where; `form` is how its mistakes are told."""

    values: Mapping[str, Any]
    places: Mapping[str, str]
    form: str


def load_settings(
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
    called: Callable[[Setting], str] | None = None,
) -> Settings:
    """Return what the file, the environment and the caller give, each over the one before.

    Parameters
    ----------
    file
        File named by the user; by default ``./headwater.yaml`` if there is one.
    given
        What the caller gives, by dotted keys: ``{"backbone.name": "resnet50"}``; None is nothing.
    called
        How the caller calls a setting, for messages, as an option by default; the value follows.

    Raises
    ------
    ConfigError
        With the place and the valid choices of every mistake.
    """
    mine = {path: value for path, value in (given or {}).items() if value is not None}
    names = {s.path: called(s) if called else f"option {s.option} " for s in every_setting()}
    after, before = _environment()
    merged: dict[str, tuple[Any, _Layer]] = {}
    for layer in (after, _file(file), before, _Layer(mine, names, _OWN)):
        for folder in _INSTEAD:
            if layer.values.get(folder) is not None:
                for other in _INSTEAD[folder]:
                    merged.pop(other, None)
        for path, value in layer.values.items():
            if path == "heads" and path in merged:
                value = _heads_over(merged[path][0], value)
            merged[path] = (value, layer)
    data: dict[str, Any] = {}
    for path, (value, _) in merged.items():
        value = _at_home(path, value)
        section, _, key = path.partition(".")
        node = data.setdefault(section, {}) if section in _SECTIONS and key else data
        if isinstance(node, dict):  # else: a section that is none, which is told
            node[key if node is not data else path] = value
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        raise _explain(error, merged) from None
    # Those of the caller's own are told by what they are called.
    return settings.given_at(
        {
            key: place
            for path, (_, layer) in merged.items()
            if layer.form != _OWN
            for key, place in layer.places.items()
            if key == path or key.startswith(f"{path}.")
        }
    )


def _at_home(path: str, value: Any) -> Any:
    """Return a path with ``~`` as the user's folder; no shell has seen it in a file or variable."""
    if path in _PATHS and isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(expand_user(value))
    return value


def _heads_over(before: Any, value: Any) -> Any:
    """Return heads that are given, each with what was given of it before, if they can be read."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        known = named_heads(before)
        return {k: {**known.get(k, {}), **own} for k, own in named_heads(value).items()}
    return value


def _environment() -> tuple[_Layer, _Layer]:
    """Return what the environment gives: what comes after the file, and what before.

    A setting's name with ``_FILE`` behind it is the file that holds its value, as secrets are
    handed over.

    Raises
    ------
    ConfigError
        For variables that can only be meant for settings and name none.
    """
    paths = {setting.environment: setting.path for setting in every_setting()}
    found, places, wrong = {}, {}, []
    for name, value in os.environ.items():
        if not value or not name.startswith(_PREFIX):
            continue
        own = name.removesuffix("_FILE")
        if own != name and own in paths:
            if os.environ.get(own):
                raise ConfigError(f"environment variables {own} and {name}", expected="one of them")
            found[paths[own]] = _first_line(name, Path(value).expanduser())
            places[paths[own]] = f"environment variable {name}, in the file"
        elif name in paths:
            path = paths[name]
            found[path], places[path] = value, f"environment variable {name}"
        elif "__" in name:
            path = name.removeprefix(_PREFIX).lower().replace("__", ".")
            found[path], places[path] = value, f"environment variable {name}"
        elif not _NO_SETTING.fullmatch(name):
            wrong.append((f"environment variable {name}={value}", _variable(name, list(paths))))
    if wrong:
        several = len(wrong) > 1
        raise ConfigError(
            "\n".join(f"{text}\n  expected: {hint}" if several else text for text, hint in wrong),
            expected="" if several else wrong[0][1],
            remedy="headwater settings lists what can be set; or unset it",
        )
    old = {path: value for path, value in found.items() if path in _AFTER_THE_FILE}
    new = {path: value for path, value in found.items() if path not in _AFTER_THE_FILE}
    return _Layer(old, places, "{place}={word}"), _Layer(new, places, "{place}={word}")


def _first_line(name: str, path: Path) -> str:
    """Return what the file says that a variable names."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(100_000).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"environment variable {name}={path}: {getattr(error, 'strerror', None) or 'no text'}",
            expected="a readable file whose first line is the value",
        ) from None


def _variable(wrong: str, names: list[str]) -> str:
    """Return the variables that a name may have been meant for."""
    word = wrong.removeprefix(_PREFIX)
    meant = [n for n in names if n.endswith(f"__{word}") or n.startswith(f"{_PREFIX}{word}__")]
    meant = meant or difflib.get_close_matches(wrong, names, n=3, cutoff=0.8)
    return f"perhaps {', '.join(meant)}" if meant else "HEADWATER_ and the name of a setting"


def _file(file: Path | None) -> _Layer:
    """Read the settings file; relative paths in it are relative to it."""
    path = file or Path(_FILE)
    if file is None and not path.is_file():
        return _Layer({}, {}, "")
    remedy = "headwater init writes one with comments"
    data, root = read_document(path, f"a readable {_FILE}", remedy)
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}, line 1", expected="keys and values, such as images: ./photos")
    values: dict[str, Any] = {}
    for key, value in (data or {}).items():
        if key not in _SECTIONS:
            values[str(key)] = value
        elif isinstance(value, dict):
            values |= {f"{key}.{name}": own for name, own in value.items()}
        elif value is not None:
            values[key] = value
    _refuse_twice(path, root)
    for setting in every_setting():
        if setting.type is Path and isinstance(value := values.get(setting.path), str):
            values[setting.path] = str(path.absolute().parent / expand_user(value))
    places = {key: f"{path}, line {line}" for key, line in _lines(root, "")}
    return _Layer(values, places, "{place}: {key} = {value}")


def _refuse_twice(path: Path, root: yaml.Node | None) -> None:
    """Raise `ConfigError` for keys that are said twice: YAML would silently take the last one."""
    found: list[str] = []
    seen: set[int] = set()

    def walk(node: yaml.Node, prefix: str) -> None:
        if id(node) in seen:  # an alias
            return
        seen.add(id(node))
        lines: dict[Any, int] = {}
        for child in node.value if isinstance(node, yaml.SequenceNode) else ():
            walk(child, prefix)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                first = lines.get((key.tag, key.value))
                lines.setdefault((key.tag, key.value), line)
                if first is not None:
                    found.append(f"{path}, lines {first} and {line}: {name} is there twice")
            walk(value, f"{name}.")

    if root is not None:
        walk(root, "")
    if found:
        raise ConfigError(
            "\n".join(found),
            expected="every key once",
            remedy="put the two together, or delete one",
        )


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield all dotted keys, with their lines."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield f"{prefix}{key.value}", key.start_mark.line + 1
        yield from _lines(value, f"{prefix}{key.value}.")


def _explain(error: ValidationError, merged: Mapping[str, tuple[Any, _Layer]]) -> ConfigError:
    """Turn pydantic's findings into one `ConfigError` that lists them all with their places."""
    found: dict[str, list[str]] = {}
    for problem in error.errors():
        keys = [str(key) for key in problem["loc"]]
        dotted = [".".join(keys[:n]) for n in range(len(keys), 0, -1)]
        layer = next(merged[path][1] for path in dotted if path in merged)
        key = next(path for path in dotted if path in layer.places)
        place, value = layer.places[key], problem["input"]
        if problem["type"] == "extra_forbidden":
            text = f"{place}: unknown key {key!r}"
            hint = _choices(keys[-1], _fields(keys[:-1]))
        else:
            word = shlex.join(map(str, value if isinstance(value, list) else [value]))
            text = layer.form.format(place=place, key=key, value=repr(value), word=word)
            hint = expectation(problem["msg"])
        found.setdefault(text, []).append(hint)
    # Of what may be one thing or another, pydantic says of each that it is not that.
    texts = [(text, " or ".join(dict.fromkeys(hints))) for text, hints in found.items()]
    many = len(texts) > 1
    lines = ([t, f"  expected: {h}"] if many else [t] for t, h in texts)
    return ConfigError(
        several(line for entry in lines for line in entry),
        expected="" if many else texts[0][1],
        remedy="headwater settings lists what can be set; headwater init writes a file with it",
    )


def expectation(message: str) -> str:
    """Return what pydantic expected, from what it says."""
    plain = message.removeprefix("Input should be ").removeprefix("Value error, ")
    for raw, said in _RAW.items():
        plain = re.sub(raw, said, plain)
    return re.sub(r"^.* is not (?=one of )| or instance of \w+|, unable to parse .*|\.$", "", plain)


def _fields(keys: list[str]) -> list[str]:
    model: Any = Settings
    for key in keys:
        # Of a mapping, whose keys are names: what each of them has.
        fields = getattr(model, "model_fields", None)
        model = fields[key].annotation if fields else get_args(model)[-1]
    return sorted(model.model_fields)


def _choices(wrong: str, right: list[str]) -> str:
    """Return the valid names, the nearest one first."""
    close = difflib.get_close_matches(wrong, right, n=1)
    if close and len(right) > _MANY:
        return f"{close[0]!r}? docs/settings.md lists them all"
    return (f"{close[0]!r}? " if close else "") + "one of " + ", ".join(right)


def by_keyword(job: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Python call gives, by dotted keys, as `load_settings` takes it.

    `job` is the group of the commands that do the same: ``run``, ``extract``, ``train``; a
    ``retrain`` takes what a ``run`` does, too. A name that is none of theirs (`Setting.keyword`),
    or says where state lives, is a `ConfigError`.
    """
    groups = {job, "run"} if job == "retrain" else {job}
    known = {
        s.keyword: s.path
        for s in every_setting()
        if (not s.groups or groups & set(s.groups)) and s.path not in _OF_THE_HOME
    }
    for name in keywords:
        if name not in known:
            culprit = f"keyword {name}={keywords[name]!r}"
            raise ConfigError(culprit, expected=_choices(name, list(known)))
    return {known[name]: value for name, value in keywords.items()}
