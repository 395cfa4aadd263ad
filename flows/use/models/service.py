"""Put a head's model in service, take it back, tell what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flows.runtime.home import Home
from flows.runtime.sections import HookSettings
from flows.use.bundle import model_parts
from flows.use.models.card import keep_card
from flows.use.models.choose import choose_model
from flows.use.models.hooks import fire
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
    home: Home,
    image_set: str,
    model: str,
    *,
    why: str = "",
    who: str = "",
    hooks: HookSettings | None = None,
    locked: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Put a head's version in service, and keep its card; see `InService.promote`.

    Parameters
    ----------
    hooks, tell
        Who is told, and what is called with a line for each that was not; see `fire`.
    locked
        The locked test, for the card; see `card_of`.
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
    done = service.promote(row, why, who)
    if done["changed"]:
        keep_card(home, image_set, locked, tell)
    return _said(home, image_set, "promoted", done, hooks, tell)


def rollback(
    home: Home,
    image_set: str,
    *,
    why: str = "",
    who: str = "",
    to: str = "",
    hooks: HookSettings | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Put in service again what was there before; see `InService.rollback`, and `promote`."""
    done = service_of(home, image_set).rollback(why, who, to)
    return _said(home, image_set, "rollback", done, hooks, tell)


def _said(
    home: Home,
    image_set: str,
    event: str,
    done: dict[str, Any],
    hooks: HookSettings | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Tell the hooks of a change, where anything was changed; return it."""
    if hooks is not None and done["changed"]:
        about = {"champion": f"{done['model']} version {done['model_version']}"}
        told = {k: done[k] for k in ("from", "to", "who", "why")}
        fire(home, image_set, hooks, event, about | told, tell)
    return done
