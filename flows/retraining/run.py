"""A retraining from its settings to its end; Prefect is started where there is work for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.extraction.plan import ready
from flows.pipeline import extracted, foreseen, on_prefect
from flows.retraining.increments import by_increments, known_growth
from flows.retraining.retrain import (
    Retrained,
    alone,
    as_champion,
    closing,
    decide,
    images_at,
    watch_over,
)
from flows.runtime.home import Home
from flows.runtime.resolve import require_set
from flows.runtime.settings import Settings
from flows.training.found import look_up
from flows.training.trainings import Request
from headwater.errors import ConfigError
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService

if TYPE_CHECKING:
    from flows.runtime.console import Reporter


def retrain(
    settings: Settings, home: Home, reporter: Reporter, *, again: bool = False
) -> Retrained:
    """Take in a set's new images, retrain, and put the better model in service.

    One retraining of a set at a time: another one waits until this one has ended.

    Parameters
    ----------
    settings
        As given. Without heads the champion's is trained, as it was.
    again
        Judge also what was judged, or was in service, before.

    Raises
    ------
    ConfigError
        For a set of pairs.
    ModelError
        Where the champion is gone: which one is to answer is for people to say.
    HeadwaterError
        What `flows.pipeline.run_pipeline` raises.
    """
    image_set = require_set(settings)
    ready(settings, home)  # what is a mistake leaves no lock behind
    with alone(home, image_set, reporter):
        registry = Registry(home.root, home.tracking_url)
        champion = InService(registry, image_set).champion()
        settings = ready(as_champion(settings, registry, champion), home)
        if settings.pairs is not None:
            raise ConfigError(
                f"retrain {image_set}: a set of pairs",
                expected="a set of single images",
                remedy=f"headwater run {image_set}, then headwater promote {image_set} HEAD",
            )
        grown = known_growth(settings.retrain, registry, champion)
        asked, idle = foreseen(settings, home, reporter, grown=grown)
        if idle:
            done = _without_prefect(asked, reporter, again)
            if done is not None:
                return done

        def start() -> Any:
            from flows.retraining.dag import retrain_flow  # late: Prefect takes seconds

            return retrain_flow(image_set, asked.to_json(), again)

        found: Retrained = on_prefect(start, reporter)
        return found


def _without_prefect(asked: Request, reporter: Reporter, again: bool) -> Retrained | None:
    """Do what the flow does where all is extracted and trained; None where the guard changes that.

    It and its server would be most of the time that a retraining with nothing to do takes.
    """
    settings, home = asked.settings, asked.home
    asked, report = extracted(asked, reporter)
    guarded = watch_over(settings, home, images_at(asked, report.version), reporter)
    asked, trained = by_increments(asked, report.version)
    registry = Registry(home.root, home.tracking_url)
    found, to_do = look_up(asked, report.version, registry)
    if to_do:
        return None
    decided = decide(settings, home, found, reporter, again=again)
    return closing(asked, report, guarded, decided, [], trained)
