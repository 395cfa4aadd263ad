"""The demo: the whole job on pictures that need no download."""

from __future__ import annotations

from pathlib import Path

from flows.command.options import settings_from
from flows.runtime.console import Reporter, err
from headwater.errors import WeightsError

BACKBONE = "resnet18"
UNTRAINED_SEED = 0
UNTRAINED = (
    f"No weights for {BACKBONE} at hand: the scores come from an untrained net and are "
    "illustrative. Set HEADWATER_WEIGHTS to a weight file or folder for real ones."
)


def run_demo(images: Path | None, home: Path | None, workers: int | None) -> int:
    """Run the main job on the demo's pictures or on `images`; return the exit status.

    Where neither ``HEADWATER_WEIGHTS`` nor timm's download gives weights, a seeded untrained net
    is run and the scores are said to be illustrative. Nothing else ever does that.
    """
    settings, place = settings_from({"home": home, "workers": workers, "backbone": BACKBONE})
    from features.backbones.weights import find_weights
    from flows.command.demo_images import TILE, make_demo_images
    from flows.command.report import shorten, show_run
    from flows.dags import run_pipeline

    seed = None
    try:
        settings.backbone.weights = find_weights(BACKBONE, None)
    except WeightsError:
        seed = UNTRAINED_SEED
        # Before the minutes that it takes, and again behind the figures.
        err.print(UNTRAINED, style="yellow")
    if images is None:
        settings.image_set = "textures"
        settings.images = make_demo_images(place.root / "demo-images")
        # The tiles' own size: enlarging them would only cost time.
        settings.extraction.size = TILE
        err.print(f"pictures: {shorten(str(settings.images))}", markup=False)
    else:
        settings.image_set = "".join(c if c.isalnum() else "-" for c in images.resolve().name)
        settings.image_set = settings.image_set.strip("-")[:64] or "images"
        settings.images = images
    with Reporter().live() as reporter:
        result = run_pipeline(settings, place, reporter, untrained_seed=seed)
    show_run(result, place)
    if seed is not None:
        err.print(f"\n{UNTRAINED}", style="yellow")
    return result.status
