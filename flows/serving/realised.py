"""How often the model in service is right, by what people say, beside what was promised."""

from __future__ import annotations

from typing import Any

from flows.runtime.home import Home
from flows.serving.kept import Kept
from flows.serving.rates import rates_of
from headwater.errors import ModelError
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService


def realised(home: Home, image_set: str, since: str = "") -> dict[str, Any]:
    """Return the rates that the champion keeps in service, as far as people say.

    Parameters
    ----------
    home, image_set
        Whose champion.
    since
        ISO 8601; by default all that the champion's version said.

    Returns
    -------
    dict
        ``service_version``; ``asked``, ``flagged`` and ``passed``: each ``pictures, ok, defect,
        unsure``; ``false_positive_rate`` and ``recall``: each ``rate, low, high``, the rate None
        where nothing tells it; ``promised``: the rate that the model promised, None where it did
        not; ``note``: what is to be known of it, or empty. Of a set with nothing in service, or
        with a champion that is gone, all that any version said.
    """
    service = InService(Registry(home.root, home.tracking_url), image_set)
    try:
        champion = service.champion()
    except ModelError:
        champion = None
    number = "" if champion is None else str(champion["service_version"])
    with Kept(home, image_set) as kept:
        rows = kept.rows(since=since)
    told = rates_of(row for row in rows if number in ("", row.service_version))
    promised = None
    if champion is not None:
        promised = champion["metrics"].get("promised_false_positive_rate")
    return {"service_version": number, **told, "promised": promised}
