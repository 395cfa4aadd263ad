"""All heads, one line each, and the look-up by name.

Importing a head's file registers it, so a new head is one more import here: this is the only module
that imports every family. Heads of other packages are found by their entry points of the group
`PLUGINS` (docs/adding-a-head.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

# ruff: noqa: F401
import heads.flow.cs_flow
import heads.flow.dual_flow
import heads.flow.fast_flow
import heads.flow.gca_flow
import heads.gallery.f2r
import heads.gallery.padim
import heads.gallery.patchcore
import heads.gallery.subspace
import heads.pairs.pair_diff
import heads.pairs.pair_flow
from heads.contract import REGISTERED, Head, HeadConfig
from heads.ensemble import Ensemble
from headwater.errors import ConfigError

#: Entry point group of the heads of other packages.
PLUGINS = "headwater.heads"


def all_heads() -> dict[str, type[Head]]:
    """Return all heads by name, in order of name; those of other packages too.

    Not `heads.ensemble`, which is made of others: `get_head` knows it.

    Examples
    --------
    >>> "patchcore" in all_heads()
    True
    """
    broken_plugins()
    learn = {k: v for k, v in REGISTERED.items() if not issubclass(v, Ensemble)}
    return dict(sorted(learn.items()))


@functools.cache
def broken_plugins() -> dict[str, str]:
    """Import the heads of other packages; return why some cannot be, by entry point name.

    A package that is broken must not keep the other heads from working.
    """
    broken = {}
    for entry in entry_points(group=PLUGINS):
        try:
            entry.load()
        except Exception as error:  # whatever a foreign module raises while it is imported
            place = f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value
            why = str(error).splitlines()[0] if str(error) else ""
            broken[entry.name] = f"{place}: {type(error).__name__}: {why}"
    return broken


def get_head(name: str) -> type[Head]:
    """Return a head's class; `ConfigError` with the valid names where there is none.

    Examples
    --------
    >>> get_head("padim").summary
    'one Gaussian of the features per position'
    """
    known = all_heads()
    if name == Ensemble.name:
        return Ensemble
    if name not in known:
        if name in broken_plugins():
            raise ConfigError(
                f"head {name!r} cannot be imported from {broken_plugins()[name]}",
                remedy="mend or uninstall that package",
            )
        raise ConfigError(
            f"unknown head {name!r}",
            expected="one of " + ", ".join(known),
            remedy="a head of another package must be installed wherever it is used",
        )
    return known[name]


def make_config(name: str, settings: Mapping[str, Any], preset: str | None = None) -> HeadConfig:
    """Build a head's configuration from plain settings over a preset.

    Raises `ConfigError` that names the setting and the valid ones.

    Examples
    --------
    >>> config = make_config("patchcore", {"neighbours": 5}, preset="small")
    >>> config.neighbours, config.ratio
    (5, 0.01)
    """
    cls = get_head(name)
    if preset is not None and preset not in cls.presets and preset != "paper":
        raise ConfigError(
            f"preset {preset!r} of head {name}",
            expected="one of " + ", ".join(["paper", *cls.presets]),
        )
    values: dict[str, Any] = {**cls.presets.get(preset or "", {}), **settings}
    fields = {f.name: f for f in dataclasses.fields(cls.Config)}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"setting {key!r} of head {name}", expected="one of " + ", ".join(sorted(fields))
            )
        if isinstance(value, list):
            values[key] = tuple(value)
    defaults = cls.Config()
    for key in settings:
        # Some settings take a number or a word (`run`), and say so by their type.
        if not (isinstance(values[key], str) and "str" in str(fields[key].type)):
            _check_type(name, key, values[key], getattr(defaults, key))
    try:
        return cls.Config(**values)
    except ConfigError as error:
        raise ConfigError(
            f"head {name}: {error.culprit}", expected=error.expected, remedy=error.remedy
        ) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings of head {name}: {error}") from error


def saved_config(name: str, settings: Mapping[str, Any]) -> HeadConfig:
    """Rebuild the configuration of a saved head; what it was saved without is as it was then.

    Examples
    --------
    >>> saved_config("padim", {"channels": 20}).score
    'paper'
    """
    return make_config(name, {**get_head(name).Config.LATER, **settings})


def _check_type(head: str, key: str, value: Any, default: Any) -> None:
    """Raise `ConfigError` where a value is not of the kind of the setting's default."""
    if default is None or value is None:
        return
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a text"),
        tuple: ((tuple,), "a list, such as [1, 2]"),
    }
    allowed, said = kinds.get(type(default), ((object,), ""))
    wrong = isinstance(value, bool) and not isinstance(default, bool)
    # Some settings take a number or a word (`auto`): a text default accepts both.
    if isinstance(default, str) and isinstance(value, (int, float)) and not wrong:
        return
    if wrong or not isinstance(value, allowed):
        raise ConfigError(
            f"setting {key} = {value!r} of head {head}",
            expected=f"{said}; its default is {default!r}",
        )
