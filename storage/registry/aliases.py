"""Aliases that say what is true: which version is, or was, the champion.

MLflow drops a version's aliases with the version. A home would then not know that it ever had a
champion, and another model would answer without a word. So whoever looks at a registered model's
versions keeps its champion's number as a tag, and misses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.errors import ModelError
from storage.registry.client import MlflowClient, MlflowException

CHAMPION = "champion"
#: Tag of a registered model: the version that was last seen as its champion.
SEEN = "headwater.champion"


class ChampionGoneError(ModelError):
    """The champion's version was deleted, and none was named."""


def remember(client: MlflowClient, model: Any) -> None:
    """Keep which version is a registered model's champion, as far as it may be written.

    Parameters
    ----------
    client
        MLflow's.
    model
        The registered model, as MLflow tells it.
    """
    version = str(model.aliases.get(CHAMPION, ""))
    if version and model.tags.get(SEEN) != version:
        # Who may only read still reads.
        with contextlib.suppress(MlflowException):
            client.set_registered_model_tag(model.name, SEEN, version)


def champion_of(
    name: str, versions: Sequence[Any], tags: Mapping[str, str], remedy: str = ""
) -> Any | None:
    """Return the version that is the champion; None where none is, and none was deleted as such.

    Parameters
    ----------
    name
        Of the registered model.
    versions
        Those that there are.
    tags
        The registered model's.
    remedy
        What to do where the champion is gone; by default to set the alias.

    Raises
    ------
    ChampionGoneError
        Where the last champion's version was deleted: which one is to answer now is for people.
    """
    found = next((v for v in versions if CHAMPION in v.aliases), None)
    was = tags.get(SEEN, "")
    # One that is there without the alias was taken back, not lost.
    if found is None and was and was not in {str(v.version) for v in versions}:
        numbers = ", ".join(str(v.version) for v in versions)
        raise ChampionGoneError(
            f"the champion of {name}, version {was}, was deleted",
            expected="a champion" if remedy else f"a champion, or a version: {numbers} or latest",
            remedy=remedy
            or "give another version the alias champion (headwater ui, on the model's page), "
            "or name one with --version N",
        )
    return found
