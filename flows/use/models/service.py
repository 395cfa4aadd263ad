"""Put a head's model in service, take it back, tell what was done."""

from __future__ import annotations

from typing import Any

from flows.runtime.home import Home
from flows.use.bundle import model_parts
from flows.use.models.choose import choose_model
from headwater.errors import ModelError
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService


def service_of(home: Home, image_set: str) -> InService:
    """Return what is in service for an image set, and changes of it."""
    return InService(Registry(home.root, home.tracking_url), image_set)


def history_of(home: Home, image_set: str) -> tuple[list[dict[str, Any]], str]:
    """Return `InService.history`, and what is wrong with what is in service now; "" if nothing.

    Raises
    ------
    ModelError
        Where the set has no models and nothing was ever in service.
    """
    service, wrong = service_of(home, image_set), ""
    try:
        service.champion()
    except ModelError as error:
        wrong = str(error)
    events = service.history()
    if not events and not service.registry.leaderboard(image_set):
        raise ModelError(**service.registry.no_models(image_set))
    return events, wrong


def promote(
    home: Home, image_set: str, model: str, *, why: str = "", who: str = ""
) -> dict[str, Any]:
    """Put a head's version in service; see `InService.promote`.

    Parameters
    ----------
    model
        ``HEAD``, ``HEAD@2``, ``HEAD@challenger``, also with ``SET.`` before it; without a version
        the head's champion, or its newest.

    Raises
    ------
    ConfigError
        Where that names no model.
    ModelError
        Where there is no such model.
    """
    service = service_of(home, image_set)
    whole = model if model.startswith(f"{image_set}.") else f"{image_set}.{model}"
    row = choose_model(service.registry, *model_parts(whole))
    return service.promote(row, why, who)
