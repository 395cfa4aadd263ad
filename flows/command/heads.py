"""What `headwater heads` tells: each head's needs, size, settings and paper."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import torch

from heads.catalogue import all_heads, broken_plugins, make_config
from heads.contract import Head, HeadConfig

#: Lines are no longer than this.
WIDTH = 80
_LABEL = 13


def describe_heads() -> list[dict[str, Any]]:
    """Return every registered head, JSON-ready.

    Each row has ``head, summary, paper, reads, pairs, reference, parameters, presets, settings,
    about``: `reference` says at which backbone, image size and maps the trainable `parameters`
    were counted; `settings` holds the defaults, `presets` what each preset changes, `about` what
    the settings mean.
    """
    rows = []
    for name, cls in all_heads().items():
        rows.append(
            {
                "head": name,
                "summary": cls.summary,
                "paper": cls.paper,
                "reads": cls.reads,
                "pairs": cls.pairs,
                "reference": None if cls.reference is None else dataclasses.asdict(cls.reference),
                "parameters": _parameters(name, cls),
                "presets": {"paper": {}, **cls.presets},
                "settings": dataclasses.asdict(cls.Config()),
                "about": dict(_meanings(cls.Config)),
                "module": cls.__module__,
            }
        )
    return rows


def _parameters(name: str, cls: type[Head]) -> int | None:
    """Return the trainable parameters at the head's reference; nothing is allocated."""
    if cls.reference is None:
        return None
    side = cls.reference.pixels
    config = make_config(name, cls.reference.settings)
    with torch.device("meta"):
        return cls(config, cls.reference.shapes, (side, side)).parameters_count()


def _meanings(config: type[HeadConfig]) -> Iterator[tuple[str, str]]:
    """Yield ``(setting, meaning)`` from the numpydoc parameters of a configuration's classes."""
    fields = {f.name for f in dataclasses.fields(config)}
    for cls in reversed(config.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        part = re.split(r"^Parameters\n-+\n", text, flags=re.MULTILINE)
        for block in re.split(r"\n(?=\S)", part[1]) if len(part) == 2 else ():
            names, _, meaning = block.partition("\n")
            for name in names.split(", "):
                if name in fields:
                    yield name, " ".join(meaning.split())


def settings_with(word: str) -> list[dict[str, Any]]:
    """Return the settings of heads that have a word in their name or meaning.

    Each row has ``key``, ``heads`` (whose it is), ``default`` and ``about``; where heads have the
    same setting it is one row.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, cls in all_heads().items():
        values, about = dataclasses.asdict(cls.Config()), dict(_meanings(cls.Config))
        for key, value in values.items():
            if word.lower() in f"{name}.{key} {about.get(key, '')}".lower():
                found.setdefault((key, _text(value), about.get(key, "")), []).append(name)
    return [
        {"key": key, "heads": heads, "default": default, "about": about}
        for (key, default, about), heads in sorted(found.items())
    ]


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines that a person reads, none longer than `WIDTH`."""
    for row in rows:
        yield from _field(row["head"], row["summary"])
        if row["paper"]:
            yield from _field("  paper", row["paper"])
        if row["reads"]:
            yield from _field("  reads", row["reads"])
        if row["parameters"] is not None:
            yield from _field("  parameters", _size(row))
        presets = [
            name if not values else f"{name} ({_values(values)})"
            for name, values in row["presets"].items()
        ]
        yield from _field("  presets", "; ".join(presets))
        yield from _field("  settings", _values(row["settings"]))
        yield ""
    for name, why in broken_plugins().items():
        yield from _field(name, f"cannot be imported from {why}")


def _size(row: dict[str, Any]) -> str:
    at, count = row["reference"], row["parameters"]
    maps = ", ".join(f"{k} {'x'.join(map(str, v))}" for k, v in at["shapes"].items())
    where = f"{at['backbone'] or 'its own encoder'}, {at['pixels']} px: {maps}"
    return f"{count / 1e6:.1f} M at {where}" if count else f"none trained; at {where}"


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{k}={_text(v)}" for k, v in values.items())


def _text(value: Any) -> str:
    """Return a setting's value as `--set` takes it."""
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _field(label: str, text: str) -> list[str]:
    first, others = f"{label:<{_LABEL}}", " " * _LABEL
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )
