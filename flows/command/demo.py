"""The demo: the whole job on pictures that need no download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flows.runtime.console import Reporter, err
from flows.runtime.given import Given
from flows.runtime.home import prefect_is_configured
from flows.runtime.server import start_server

#: A gallery, a statistic and a flow head: what a first look should have, in little time.
HEADS: dict[str, dict[str, Any]] = {"patchcore": {"ratio": 0.05}, "padim": {}, "fast_flow": {}}
#: Enough for the flow head on so few pictures.
EPOCHS = 8


def run_demo(given: Given) -> int:
    """Run the main job on the demo's pictures or on a folder given; return the exit status.

    The pictures are photographs that scikit-image ships, with defects drawn into them. The backbone
    is that of any new set (`flows.runtime.resolve`): with no weights given the default one, whose
    real weights are installed.
    """
    settings, home = given.open()
    if not home.named() and not prefect_is_configured():
        start_server()  # while pictures are drawn and torch is imported: there will be work for it
    from flows.command.demo_images import TILE, make_demo_images
    from flows.command.report import shorten, show_run
    from flows.pipeline import run_pipeline

    more: dict[str, Any] = {} if settings.heads else {"heads": HEADS}
    if (images := given.values.get("images")) is None:
        more["image_set"] = "materials"
        more["images"] = make_demo_images(home.root / "demo-pictures")
        # The tiles' own size: enlarging them would only cost time.
        more["extraction.size"] = TILE
        if settings.training.epochs is None:
            more["training.epochs"] = EPOCHS
        err.print(
            "pictures: photographs of brick and gravel from scikit-image; the defects are "
            f"drawn into them ({shorten(str(more['images']))})",
            markup=False,
        )
    else:
        name = "".join(c if c.isalnum() else "-" for c in Path(images).resolve().name)
        more["image_set"] = name.strip("-")[:64] or "images"
    settings, home = dataclasses.replace(given, values={**given.values, **more}).open()
    with Reporter().live() as reporter:
        result = run_pipeline(settings, home, reporter)
    show_run(result, home)
    return result.status
