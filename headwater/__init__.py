"""Headwater: features once, many heads, traceable models. The front door in Python.

`open` gives a home with every daily job as a method, `load` a model out of a bundle
(docs/python.md). This module imports nothing
until a name is used; the rest of the package is the words that all rooms share: errors,
specifications, files, version. Nothing inside imports this module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headwater.version import __version__ as __version__

if TYPE_CHECKING:
    from flows.door.detector import LoadedModel as LoadedModel
    from flows.door.detector import Result as Result
    from flows.door.detector import load as load
    from flows.door.home import OpenHome as OpenHome
    from flows.door.home import open_home
    from headwater.errors import HeadwaterError as HeadwaterError

    open = open_home

#: Where each name lives; its module is imported when it is first asked for.
_NAMES = {
    "open": ("flows.door.home", "open_home"),
    "load": ("flows.door.detector", "load"),
    "OpenHome": ("flows.door.home", "OpenHome"),
    "LoadedModel": ("flows.door.detector", "LoadedModel"),
    "Result": ("flows.door.detector", "Result"),
    "HeadwaterError": ("headwater.errors", "HeadwaterError"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    module, own = _NAMES[name]
    return getattr(import_module(module), own)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
