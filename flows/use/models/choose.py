"""Which registered model is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwater.errors import ConfigError, ModelError
from storage.registry.aliases import CHAMPION
from storage.registry.registry import Registry
from storage.registry.service.in_service import PREVIOUS, InService


def choose_model(
    registry: Registry,
    image_set: str,
    head: str | None = None,
    version: str | int | None = None,
    first: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the registered model to use, as `Registry.get_model` does.

    Parameters
    ----------
    head
        Without one it is the model in service; of a set that has none in service that of its only
        head, or of `first`.
    version
        Number or alias among the head's; without one its champion, or the newest. ``champion``
        and ``previous`` without a head are of the model in service.
    first
        Of several heads, the first of these that has a model; none is chosen where this is empty.

    Returns
    -------
    dict
        A row; of the model in service with ``service_version``.

    Raises
    ------
    ConfigError
        For a version without a head where a model is in service: versions of which?
    ModelError
        Where there is none, or several and none was named; where the model in service is gone.
    """
    if head is None and version in (None, CHAMPION):
        if (served := InService(registry, image_set).champion()) is not None:
            return served
    elif head is None and version == PREVIOUS:
        return InService(registry, image_set).previous()
    elif head is None and InService(registry, image_set).held():
        raise ConfigError(
            f"version {version} of {image_set}: of which head?",
            expected="--head HEAD with it; without both the model in service is taken",
            remedy=f"headwater history {image_set} shows what is and was in service",
        )
    return registry.get_model(image_set, choose_head(registry, image_set, head, first), version)


def choose_head(
    registry: Registry, image_set: str, head: str | None, first: Sequence[str] = ()
) -> str:
    """Return the head to predict with: the one named, or the set's only one.

    Parameters
    ----------
    first
        Of several, the first of these that has a model; none is chosen where this is empty.

    Raises
    ------
    ModelError
        Where the set has no model, or several and none was named.
    """
    known = sorted({row["head"] for row in registry.leaderboard(image_set)})
    if not known:
        raise ModelError(**registry.no_models(image_set))
    if head is None and len(known) > 1:
        if preferred := [name for name in first if name in known]:
            return preferred[0]
        raise ModelError(
            f"{image_set!r} has models of several heads",
            expected=f"--head with one of {', '.join(known)}",
            remedy=f"headwater compare {image_set} shows how they do",
        )
    if head is not None and head not in known:
        raise ModelError(
            f"no model of head {head!r} in {image_set!r}", expected=f"one of {', '.join(known)}"
        )
    return head or known[0]
