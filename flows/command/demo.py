"""The demo: the whole job on pictures that need no download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flows.runtime.console import Reporter, err
from flows.runtime.given import Given
from headwater.errors import WeightsError

BACKBONE = "resnet18"
UNTRAINED_SEED = 0
UNTRAINED = (
    f"No weights for {BACKBONE} at hand: the scores come from an untrained net and are "
    "illustrative. Set HEADWATER_WEIGHTS to a weight file or folder for real ones."
)


def run_demo(given: Given) -> int:
    """Run the main job on the demo's pictures or on a folder given; return the exit status.

    Where neither ``HEADWATER_WEIGHTS`` nor timm's download gives weights, a seeded untrained net
    is run and the scores are said to be illustrative. Nothing else ever does that.
    """
    _, home = given.open()
    from features.backbones.weights import find_weights
    from flows.command.demo_images import TILE, make_demo_images
    from flows.command.report import shorten, show_run
    from flows.dags import run_pipeline

    more: dict[str, Any] = {"backbone.name": BACKBONE}
    seed = None
    try:
        more["backbone.weights"] = find_weights(BACKBONE, None)
    except WeightsError:
        seed = UNTRAINED_SEED
        # Before the minutes that it takes, and again behind the figures.
        err.print(UNTRAINED, style="yellow")
    if (images := given.values.get("images")) is None:
        more["image_set"] = "textures"
        more["images"] = make_demo_images(home.root / "demo-images")
        # The tiles' own size: enlarging them would only cost time.
        more["extraction.size"] = TILE
        err.print(f"pictures: {shorten(str(more['images']))}", markup=False)
    else:
        name = "".join(c if c.isalnum() else "-" for c in Path(images).resolve().name)
        more["image_set"] = name.strip("-")[:64] or "images"
    settings, home = dataclasses.replace(given, values={**given.values, **more}).open()
    with Reporter().live() as reporter:
        result = run_pipeline(settings, home, reporter, untrained_seed=seed)
    show_run(result, home)
    if seed is not None:
        err.print(f"\n{UNTRAINED}", style="yellow")
    return result.status
