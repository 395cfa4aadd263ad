"""A retraining from its settings to its end; Prefect is started where there is work for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.extraction.plan import ready
from flows.pipeline import extracted, foreseen, on_prefect
from flows.retraining.diary import noted, step
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
from flows.runtime.settings import Settings, changed
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

    One retraining of a set at a time: another one waits until this one has ended. What it did, or
    why it could not, is kept in the home (`flows.retraining.diary`), and the hooks are told.

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
    hooks = settings.hooks
    # Prefect keeps what a flow is asked for: no address of a hook, which may be a secret.
    settings = changed(settings, {"hooks": type(hooks)()})
    with noted(home, image_set, hooks, reporter) as told:
        ready(settings, home)  # what is a mistake leaves no lock behind
        with alone(home, image_set, reporter):
            told.start()
            told.done = _alone(settings, home, reporter, again)
    return told.done


def _alone(settings: Settings, home: Home, reporter: Reporter, again: bool) -> Retrained:
    """Do what `retrain` does, while no other of the set is at work."""
    image_set = require_set(settings)
    registry = Registry(home.root, home.tracking_url)
    with step("begin"):
        champion = InService(registry, image_set).champion()
        settings = ready(as_champion(settings, registry, champion), home)
        if settings.pairs is not None:
            raise ConfigError(
                f"retrain {image_set}: a set of pairs",
                expected="a set of single images",
                remedy=f"headwater run {image_set}, then headwater promote {image_set} HEAD",
            )
    with step("extract"):
        grown = known_growth(settings.retrain, registry, champion)
        asked, idle = foreseen(settings, home, reporter, grown=grown)
    if idle:
        done = _without_prefect(asked, reporter, again)
        if done is not None:
            return done

    def start() -> Any:
        from flows.retraining.dag import retrain_flow  # late: Prefect takes seconds

        return retrain_flow(image_set, asked.to_json(), again)

    with step("flow"):
        found: Retrained = on_prefect(start, reporter)
    return found


def _without_prefect(asked: Request, reporter: Reporter, again: bool) -> Retrained | None:
    """Do what the flow does where all is extracted and trained; None where the guard changes that.

    It and its server would be most of the time that a retraining with nothing to do takes.
    """
    settings, home = asked.settings, asked.home
    with step("extract"):
        asked, report = extracted(asked, reporter)
    with step("guard"):
        guarded = watch_over(settings, home, images_at(asked, report.version), reporter)
    asked, trained = by_increments(asked, report.version)
    registry = Registry(home.root, home.tracking_url)
    found, to_do = look_up(asked, report.version, registry)
    if to_do:
        return None
    with step("gate"):
        decided = decide(settings, home, found, reporter, again=again)
    return closing(asked, report, guarded, decided, [], trained)
