"""What is wrong with a set, each with a remedy; a check that itself fails is told, too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.retraining.diary import FAILED, UNDER_WAY
from flows.retraining.locked import locked_test
from flows.use.models.hooks import fired
from flows.use.soundness import cards
from headwater.errors import HeadwaterError, ModelError
from headwater.samples import HELD
from storage.registry.place import local_path
from storage.serving.whole import as_saved

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from storage.registry.registry import Registry

#: Free bytes below which a disk is said to be nearly full: a block of features is 64 MB, a model
#: 20 to 300 MB, and a retraining writes some of each.
LOW_DISK = 2_000_000_000


@dataclass(frozen=True)
class Wrong:
    """Something that needs a person.

    Parameters
    ----------
    what
        ``champion``, ``files``, ``locked test``, ``images``, ``disk``, ``reviews``, ``retrain``,
        ``hook``, ``rate``, ``drift``, ``served``, ``serve``, ``removed``, ``home``,
        ``registry`` or ``store``.
    said
        What is wrong, in a line.
    remedy
        What can be done.
    """

    what: str
    said: str
    remedy: str


def asked(what: str, work: Callable[[], Sequence[Wrong]], remedy: str) -> list[Wrong]:
    """Return what a check finds; where the check itself fails, that.

    Parameters
    ----------
    what
        Of `Wrong`.
    work
        The check.
    remedy
        Where the error names none.
    """
    try:
        return list(work())
    except HeadwaterError as error:
        return [of_error(what, error, remedy)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        return [Wrong(what, f"{type(error).__name__}: {said}", remedy)]


def of_error(what: str, error: HeadwaterError, remedy: str = "") -> Wrong:
    """Return an error as what is wrong."""
    said = " / ".join(str(HeadwaterError(error.culprit)).splitlines())
    return Wrong(what, said, error.remedy or remedy)


def disks(home: Home) -> list[Wrong]:
    """Return the disks of a home that are nearly full."""
    found = []
    places = {"the home": home.root}
    if home.store_url and "://" not in home.store_url:
        places["the feature store"] = Path(home.store_url)
    for name, place in places.items():
        if place.exists() and (free := shutil.disk_usage(place).free) < LOW_DISK:
            found.append(
                Wrong(
                    "disk",
                    f"{free / 1e9:.1f} GB are free for {name}, {place}",
                    "headwater home says what is large; headwater store gc SET, headwater delete",
                )
            )
    return found


def champion_files(
    registry: Registry, image_set: str, champion: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, list[Wrong]]:
    """Return what the manifest of the model in service says, and whether its files are damaged.

    Files that lie elsewhere than on this machine's disk are not looked at: ``(None, [])``.
    """
    model, version = champion["uri"].removeprefix("models:/").split("/")
    folder = local_path(registry.client.get_model_version_download_uri(model, version))
    if folder is None:
        return None, []
    try:
        return as_saved(folder), []
    except ModelError as error:
        remedy = (
            f"restore it from a copy of the home; until then headwater rollback {image_set}, or "
            f"headwater promote {image_set} HEAD@VERSION"
        )
        return None, [Wrong("files", f"{error.culprit}: the model in service is damaged", remedy)]


def of_removed(
    home: Home, registry: Registry, image_set: str, champion: Mapping[str, Any]
) -> list[Wrong]:
    """Return whether the model in service learnt from images that were taken out of its set."""
    if not (removed := home.removed(image_set)):
        return []
    kept = registry.artifact_json(champion["run_id"], "tables/samples.json") or []
    learnt = {one["sha256"] for one in kept if one["role"] in ("train", "held out")}
    if not (count := len(learnt & removed)):
        return []
    said = f"{count} images that were" if count > 1 else "an image that was"
    return [
        Wrong(
            "removed",
            f"the model in service learnt from {said} taken out of the set",
            f"headwater retrain {image_set} makes one without; where the gate keeps the old one, "
            f"headwater promote {image_set} HEAD@VERSION",
        )
    ]


def of_set(home: Home, image_set: str) -> list[Wrong]:
    """Return what is wrong with what a set keeps beside its models."""
    return [
        *asked("locked test", lambda: _locked(home, image_set), f"headwater lock {image_set}"),
        *(Wrong(f.what, f.said, f.remedy) for f in cards(home, [image_set])),
        *asked("reviews", lambda: _reviews(home, image_set), _restore(home, "reviews", image_set)),
        *asked("hook", lambda: _hooks(home, image_set), _restore(home, "hooks", image_set)),
    ]


def _restore(home: Home, room: str, image_set: str) -> str:
    return f"restore {home.root / room / image_set}.json from a copy of the home"


def _locked(home: Home, image_set: str) -> list[Wrong]:
    locked_test(home, image_set)
    return []


def waiting(home: Home, image_set: str) -> int | None:
    """Return how many images wait for a review; None where what was said of them is damaged."""
    try:
        return sum(one["said"] == HELD for one in home.reviews(image_set).values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _reviews(home: Home, image_set: str) -> list[Wrong]:
    count = sum(one["said"] == HELD for one in home.reviews(image_set).values())
    if not count:
        return []
    said = f"{count} images wait for a review" if count > 1 else "1 image waits for a review"
    remedy = f"headwater review {image_set} shows them; --accept IMAGE or --reject IMAGE"
    return [Wrong("reviews", said, remedy)]


def _hooks(home: Home, image_set: str) -> list[Wrong]:
    """Return the hooks that were not told of the last event."""
    every = fired(home, image_set)
    last = [one for one in every if (one.event, one.when) == (every[0].event, every[0].when)]
    return [
        Wrong(
            "hook",
            f"{one.to} was not told of {one.event} at {one.when}: {one.problem}",
            "see to it, and to the section hooks of the settings; the next event is told again",
        )
        for one in last
        if one.problem
    ]


def of_retraining(image_set: str, last: Mapping[str, Any] | None) -> Iterator[Wrong]:
    """Yield what is wrong with a set's last retraining, as of `flows.retraining.diary`."""
    if last is None:
        return
    again = f"headwater retrain {image_set} goes on from what is kept"
    if last["what"] == FAILED:
        said = f"the retraining of {last['start']} failed ({last.get('step', '')}): {last['why']}"
        yield Wrong("retrain", said, last.get("remedy") or again)
    elif last["what"] == UNDER_WAY and last.get("alive") is False:
        yield Wrong(
            "retrain", f"the retraining that began at {last['start']} broke off: it is gone", again
        )
    for head, why in last.get("failures") or ():
        first = str(why).splitlines()[0] if why else ""
        yield Wrong("retrain", f"{head} could not be trained: {first}", again)
    if count := (last.get("counts") or {}).get("set_aside"):
        yield Wrong(
            "images",
            f"the last retraining set {count} files aside",
            f"headwater extract {image_set} names them and says why",
        )
