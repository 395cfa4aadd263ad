"""The kinds of values that settings have, and how each is written as text."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, WrapValidator

from headwater.addresses import bare
from headwater.errors import ConfigError
from headwater.prices import Prices

MIN_PIXELS = 16
#: Of heads to combine: all that can.
ALL = "all"


def from_text(text: str) -> Any:
    """Read a value as JSON where it is JSON, as the text that it is otherwise."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def assignments(items: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` texts as a mapping; `ValueError` where one is something else."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(f"KEY=VALUE instead of {item!r}")
        pairs[key.strip()] = from_text(value)
    return pairs


def _mapping(value: Any) -> Any:
    if isinstance(value, str):
        said = from_text(value)
        value = [value] if said == value else said
    return assignments(value) if isinstance(value, list) else value


def named_heads(value: Any) -> Any:
    """Return heads said as ``a,b``, as a list or as a mapping as ``{head: its settings}``.

    What is none of these is returned as it is; `ValueError` where the text names no head.
    """
    if isinstance(value, str):
        said = from_text(value)
        value = [h.strip() for h in value.split(",") if h.strip()] if said == value else said
        if not value:
            raise ValueError("one head or more, such as patchcore")
    if isinstance(value, list | tuple):
        return {str(name): {} for name in value}
    if isinstance(value, Mapping):
        return {name: {} if own is None else own for name, own in value.items()}
    return value


def _combined(value: Any) -> Any:
    """Return heads said as ``a,b``, a list, ``all`` or yes; none for no."""
    if isinstance(value, str):
        said = from_text(value)
        value = said if isinstance(said, bool | list) else value
    if isinstance(value, bool):
        return (ALL,) if value else ()
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
        if not value:
            raise ValueError("two heads or more, such as patchcore,padim, or all")
    return value


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``(height, width)`` of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else size


def _pixels(value: Any, validate: Any) -> Any:
    if isinstance(value, str):
        sides = re.fullmatch(r"(\d+) *[xX×] *(\d+)", value.strip())
        value = [int(side) for side in sides.groups()] if sides else from_text(value)
    try:
        size = validate(value)
    except ValueError:
        size = 0
    if min(height_width(size)) < MIN_PIXELS:
        raise ValueError(
            f"pixels, greater than or equal to {MIN_PIXELS}, or height and width as 256x512"
        )
    return size


def _value_range(value: Any) -> str:
    """Read a range of values: ``auto``, ``full`` or ``LO:HI``, in a file ``[LO, HI]`` too."""
    if isinstance(value, list | tuple):
        value = ":".join(map(str, value))
    text = str(value).strip().lower()
    if text in ("auto", "full"):
        return text
    try:
        low, high = (float(word) for word in text.split(":"))
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError
    except ValueError:
        raise ValueError("auto, full or LO:HI, two numbers, the smaller first") from None
    return f"{low:.12g}:{high:.12g}"


def low_high(value_range: str) -> tuple[float, float] | None:
    """Return the two values of a range given as ``LO:HI``; None for ``auto`` and ``full``."""
    if ":" not in value_range:
        return None
    low, high = map(float, value_range.split(":"))
    return low, high


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda or cuda:1")
    return name


def _seeds(value: Any) -> Any:
    """Return seeds given as ``0,1,2``, each once."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return value
    try:
        found = [int(str(one)) for one in value]
    except ValueError:
        raise ValueError("whole numbers with commas between, as 0,1,2") from None
    if len(set(found)) < len(found):
        raise ValueError("each seed once")
    return found


def _costs(value: Any) -> str:
    """Read prices, ``MISS:FALSE_ALARM``; in a file ``[MISS, FALSE_ALARM]`` too."""
    if isinstance(value, list | tuple):
        value = ":".join(map(str, value))
    try:
        return str(Prices.of(str(value)))
    except ConfigError:
        # YAML reads a bare 100:1 as minutes and seconds.
        raise ValueError('two prices, MISS:FALSE_ALARM; in a file in quotes, as "100:1"') from None


def _words(value: Any) -> Any:
    """Return a command's words; a text is taken apart as a shell does, and no shell starts it."""
    if isinstance(value, str):
        said = from_text(value)
        try:
            value = said if isinstance(said, list) else shlex.split(value)
        except ValueError as error:
            raise ValueError(f"a command and its words: {error}") from None
    if isinstance(value, list | tuple) and not (value and str(value[0]).strip()):
        raise ValueError("a command and its words, as [/usr/bin/notify, --all]")
    return value


def _web_address(address: str) -> str:
    if not re.fullmatch(r"(?i)https?://[^/?#\s]+[^\s]*", address):
        raise ValueError("an address as https://host/path")
    return bare(address)


def _without_secret(address: str) -> str:
    if bare(address) != address:
        raise ValueError(
            "an address without user and password: S3 takes them from AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, Dask takes keys from DASK_DISTRIBUTED__COMM__TLS__*"
        )
    return address


#: May have a user and password in it, of which settings stay free.
SecretAddress = Annotated[str, AfterValidator(bare)]
#: The same of a web server.
WebAddress = Annotated[str, AfterValidator(_web_address)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
#: Has no place for any.
PlainAddress = Annotated[str, AfterValidator(_without_secret)]
Pixels = Annotated[int | tuple[int, int], WrapValidator(_pixels)]
Costs = Annotated[str, BeforeValidator(_costs)]
ValueRange = Annotated[str, BeforeValidator(_value_range)]
Device = Annotated[str, AfterValidator(_device)]
Precision = Literal["auto", "float32", "bfloat16"]
#: As in `features.images.layouts.catalogue`; a test compares.
LayoutName = Literal[
    "auto", "mvtec", "mvtec-ad-2", "btad", "visa", "dagm", "kolektor", "good-bad", "normal",
    "lookout", "list",
]  # fmt: skip
TimmOptions = Annotated[
    dict[str, str | int | float | bool | list[float]], BeforeValidator(_mapping)
]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds)]
Combined = Annotated[tuple[str, ...], BeforeValidator(_combined)]
Heads = Annotated[dict[str, dict[str, Any]], BeforeValidator(named_heads)]
