"""The examples in docstrings, run: what they say is what comes out."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any


def modules_with_examples(*packages: str) -> list[str]:
    """Return the names of all modules below some packages that have examples."""
    found = []
    for package in packages:
        for folder in importlib.import_module(package).__path__:
            for module in pkgutil.walk_packages([folder], f"{package}."):
                path = Path(folder, *module.name.removeprefix(f"{package}.").split("."))
                if not module.ispkg and ">>> " in path.with_suffix(".py").read_text():
                    found.append(module.name)
    return found


def run_examples(module: str, **names: Any) -> None:
    """Run a module's examples; `names` are known to them."""
    failed, tried = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert tried
    assert not failed, f"{failed} examples of {module} are not true; see above"
