"""The model in service of an image set: a registered model of the set's own name.

Each of its versions is a head's version that was put in service once: the same files and the same
run, with who did it, when and why as tags. The alias ``champion`` says which one answers. It is one
row of MLflow's database and changes at once: who asks while it changes gets the one or the other.
``previous`` is the version that was in service before the champion was put there.

What was done is kept as tags of the registered model (`history`). A version counts as in service by
its alias alone: a change that was killed between the two is told as it is.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from headwater.errors import ModelError
from headwater.files import locked
from storage.registry.aliases import CHAMPION, SEEN, champion_of, remember
from storage.registry.client import MlflowException, told
from storage.registry.describe import FIGURES, headline, plain, version_page
from storage.registry.facts import user
from storage.registry.names import row_of
from storage.registry.registry import Registry
from storage.registry.removal import check_writable

PREVIOUS = "previous"
_EVENT = "headwater.event."
#: Tags of a version in service: whose copy it is, what it took the place of, who, when, why.
_MODEL, _VERSION, _HEAD, _BEFORE = "model", "model_version", "head", "headwater.before"


class InService:
    """What is in service for an image set, and changes of it.

    Parameters
    ----------
    registry
        Where the set's models are.
    image_set
        Name of the set, of images or of pairs.
    """

    def __init__(self, registry: Registry, image_set: str) -> None:
        self.registry, self.image_set = registry, image_set

    def champion(self) -> dict[str, Any] | None:
        """Return the model in service, None where none ever was.

        It is a row as of `Registry.get_model`, of the head's version, with ``service_version`` and
        an ``uri`` that holds also where MLflow has deleted the head's version.

        Raises
        ------
        ModelError
            Where the champion's version was deleted: which one is to answer now is for people.
        """
        with told():
            if (model := self._model()) is None:
                return None
            versions, tags = self.registry._versions(self.image_set), model.tags
            found = champion_of(self.image_set, versions, tags, self._ways_out(versions, tags))
            return None if found is None else self._row(found)

    def version(self) -> str:
        """Return the champion's number in service, in one query; empty where none is left."""
        with told():
            model = self._model()
            return "" if model is None else str(model.aliases.get(CHAMPION, ""))

    def previous(self) -> dict[str, Any]:
        """Return the model that was in service before, as `champion` does.

        Raises
        ------
        ModelError
            Where there is none.
        """
        with told():
            found = next((v for v in self._versions() if PREVIOUS in v.aliases), None)
            if found is None:
                raise ModelError(
                    f"no model of {self.image_set} was in service before",
                    remedy=f"headwater history {self.image_set}",
                )
            return self._row(found)

    def held(self) -> dict[tuple[str, str], str]:
        """Return what must not go: ``(model, version)`` of heads, and what each is in service."""
        with told():
            return {
                (v.tags.get(_MODEL, ""), v.tags.get(_VERSION, "")): alias
                for v in self._versions()
                for alias in (PREVIOUS, CHAMPION)
                if alias in v.aliases
            }

    def promote(
        self,
        row: Mapping[str, Any],
        why: str = "",
        who: str = "",
        *,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Put a head's version in service; the one that was there becomes ``previous``.

        Nothing is done where it is the champion already.

        Parameters
        ----------
        row
            Of `Registry.get_model`.
        why, who
            Kept in the history; `who` is the user by default.
        more
            Kept with it: what a retraining judged (`judged`).

        Returns
        -------
        dict
            The event: ``what, from, to, head, model, model_version, who, why, when``, and
            ``changed``, whether anything was.

        Raises
        ------
        StoreError
            Where the home cannot be written or MLflow refuses.
        """
        check_writable(self.registry)
        with self._alone(), told():
            versions = self._versions()
            now = next((v for v in versions if CHAMPION in v.aliases), None)
            before = str(now.version) if now is not None else ""
            if now is not None and _copy_of(now) == (row["model"], row["version"]):
                return self._event("promote", before, now, why, who) | {"changed": False}
            new = self._left_over(versions, row) or self._copy(row, before, why, who)
            if before:
                self._alias(PREVIOUS, before)
            self._alias(CHAMPION, str(new.version))
            event = self._event("promote", before, new, why, who) | dict(more or {})
            return self._keep(event, row["metrics"])

    def keep(self, why: str, who: str = "", *, more: Mapping[str, Any] | None = None) -> None:
        """Keep in the history that the champion stays, and why; nothing where there is none."""
        check_writable(self.registry)
        with self._alone(), told():
            now = next((v for v in self._versions() if CHAMPION in v.aliases), None)
            if now is not None:
                event = self._event("keep", str(now.version), now, why, who) | dict(more or {})
                self._keep(event, self._row(now)["metrics"])

    def judged(self, test: str) -> set[tuple[str, str]]:
        """Return which ``(model, version)`` were judged on a locked test, or were in service."""
        with told():
            events, versions = self._events(), self._versions()
            was = {event["to"] for event in events}
            # The newest may be of a change that broke off: it never answered.
            found = {
                _copy_of(v)
                for at, v in enumerate(versions)
                if at or v.aliases or str(v.version) in was
            }
            for event in events:
                found.add((event["model"], str(event["model_version"])))
                if event.get("test") == test:
                    found |= {(model, str(version)) for model, version in event["judged"]}
        return found

    def rollback(self, why: str = "", who: str = "", to: str = "") -> dict[str, Any]:
        """Put the version in service again that was there before the champion.

        Once more goes back one more. Where the champion's version was deleted, it goes back to the
        newest that was in service before it and is still there.

        Parameters
        ----------
        to
            Instead: that version of the model in service.

        Returns
        -------
        dict
            As `promote`.

        Raises
        ------
        ModelError
            Where there is nothing to go back to.
        """
        check_writable(self.registry)
        with self._alone(), told():
            versions = self._versions()
            known = {str(v.version): v for v in versions}
            now = next((v for v in versions if CHAMPION in v.aliases), None)
            if to and to.removeprefix("v") not in known:
                raise ModelError(
                    f"{self.image_set} was never in service as version {to}",
                    expected="one of " + (", ".join(sorted(known, key=int)) or "none"),
                    remedy=f"headwater history {self.image_set}",
                )
            goal = to.removeprefix("v") or self._before(versions)
            if goal is None:
                why = f"no model of {self.image_set} was in service before"
                if gone := sorted({e["to"] for e in self._events()} - known.keys(), key=int):
                    why += f" and is still there: {', '.join(gone)} deleted"
                raise ModelError(
                    why, remedy=f"headwater promote {self.image_set} HEAD puts one in service"
                )
            new, before = known[goal], str(now.version) if now is not None else ""
            if goal == before:
                return self._event("rollback", before, new, why, who) | {"changed": False}
            self._alias(CHAMPION, goal)
            self._alias(PREVIOUS, self._chain(versions).get(goal, ""))
            done = self._event("rollback", before, new, why, who)
            return self._keep(done, self._row(new)["metrics"])

    def history(self) -> list[dict[str, Any]]:
        """Return what was done, newest first: events as of `promote`, with the model's figures.

        ``metrics`` are those of the version that was put in service, ``now`` whether it is there,
        ``deleted`` whether it is gone.
        Where the alias was set by other means the first row says so.
        """
        with told():
            versions, events = self._versions(), self._events()
            now = next((v for v in versions if CHAMPION in v.aliases), None)
            if now is not None and (not events or events[0]["to"] != str(now.version)):
                own = now.tags if not events or int(now.version) > int(events[0]["to"]) else {}
                kept = {k: own.get(k, "") for k in ("who", "why", "when")}
                made = self._event("set without a record", "", now, kept["why"], kept["who"] or "?")
                events.insert(0, {**made, "when": kept["when"]})
            known = {str(v.version): v for v in versions}
            for at, event in enumerate(events):
                version = known.get(event["to"])
                # Of a version that was deleted: those of then.
                kept = event.setdefault("metrics", {})
                event["metrics"] = kept if version is None else self._row(version)["metrics"]
                event["deleted"] = version is None
                # The first row is of what is in service, where anything is: see above.
                event["now"] = at == 0 and now is not None
            return events

    def events(self) -> list[dict[str, Any]]:
        """Return what was done, newest first, as it was kept; quicker than `history`."""
        with told():
            return self._events()

    def forget(self, row: Mapping[str, Any]) -> None:
        """Delete the versions in service that are copies of a head's version about to go."""
        with told():
            for version in self._versions():
                if _copy_of(version) == (row["model"], str(row["version"])):
                    self.registry.client.delete_model_version(self.image_set, version.version)

    def drop(self) -> None:
        """Delete the registered model: the set goes."""
        if self._model() is not None:
            self.registry.client.delete_registered_model(self.image_set)

    # --- within ----------------------------------------------------------------------------------

    def _versions(self) -> list[Any]:
        """Return the versions, newest first; none where nothing was ever in service."""
        return [] if self._model() is None else self.registry._versions(self.image_set)

    def _model(self) -> Any | None:
        """Return MLflow's registered model, None where nothing was ever in service."""
        if self.registry.local and not self.registry.database.exists():
            return None
        try:
            return self.registry.client.get_registered_model(self.image_set)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _row(self, version: Any) -> dict[str, Any]:
        row = row_of(version, self.registry.find_run(version.run_id), version.tags.get(_HEAD, ""))
        model, number = _copy_of(version)
        return {**row, "model": model, "version": number, "service_version": str(version.version)}

    def _copy(self, row: Mapping[str, Any], before: str, why: str, who: str) -> Any:
        """Make the version in service of a head's version; nothing answers by it yet."""
        client, name = self.registry.client, self.image_set
        if self._model() is None:
            tags = {"image_set": name, "headwater.kind": "in service"}
            with contextlib.suppress(MlflowException):  # made by another in between
                client.create_registered_model(name, tags)
        old = client.get_model_version(row["model"], row["version"])
        told_by = {"who": who or user(), "why": why, "when": _now(), _BEFORE: before}
        own = {_MODEL: row["model"], _VERSION: str(row["version"]), _HEAD: row["head"]}
        tags = {**old.tags, **own, **told_by}
        link = version_page(row["model"], row["version"])
        about = (
            f"[{plain(row['model'])} version {row['version']}]({link}), put in service by "
            f"{plain(told_by['who'])} on {told_by['when']}. {plain(why)}\n\n"
            f"{headline(row['metrics'])}"
        )
        return client.create_model_version(
            name,
            old.source or "",
            old.run_id,
            tags={k: v[:5000] for k, v in tags.items()},
            description=about,
            await_creation_for=60,
        )

    def _left_over(self, versions: list[Any], row: Mapping[str, Any]) -> Any | None:
        """Return a copy that was made and never put in service, as its change broke off."""
        if not versions or versions[0].aliases:
            return None
        newest, was = versions[0], {event["to"] for event in self._events()}
        mine = _copy_of(newest) == (row["model"], str(row["version"]))
        return newest if mine and str(newest.version) not in was else None

    def _alias(self, alias: str, version: str) -> None:
        client = self.registry.client
        if version:
            client.set_registered_model_alias(self.image_set, alias, version)
        else:
            client.delete_registered_model_alias(self.image_set, alias)
        # Now, not when it is read next: it may be deleted before.
        remember(client, client.get_registered_model(self.image_set))

    def _chain(self, versions: list[Any]) -> dict[str, str]:
        """Return which version each came in the place of, of those that are still there."""
        before = {e["to"]: e["from"] for e in self._events()[::-1] if e["what"] == "promote"}
        before |= {str(v.version): v.tags.get(_BEFORE, "") for v in versions}
        there = {str(v.version) for v in versions}
        made = {}
        for version in before:
            goal, seen = before[version], {version}
            while goal and goal not in there and goal not in seen:
                seen.add(goal)
                goal = before.get(goal, "")
            made[version] = goal if goal in there else ""
        return made

    def _before(self, versions: list[Any]) -> str | None:
        """Return the version that a rollback goes to; None where there is none."""
        now = next((str(v.version) for v in versions if CHAMPION in v.aliases), None)
        if now is None and (model := self._model()) is not None:
            now = model.tags.get(SEEN, "")
        return self._chain(versions).get(now or "", "") or None

    def _ways_out(self, versions: list[Any], tags: Mapping[str, str]) -> str:
        goal = self._chain(versions).get(tags.get(SEEN, ""), "")
        back = f"headwater rollback {self.image_set} goes back to version {goal}; " if goal else ""
        return f"{back}headwater promote {self.image_set} HEAD puts another in service"

    def _event(self, what: str, before: str, new: Any, why: str, who: str) -> dict[str, Any]:
        model, number = _copy_of(new)
        return {
            "what": what,
            "from": before,
            "to": str(new.version),
            "head": new.tags.get(_HEAD, ""),
            "model": model,
            "model_version": number,
            "who": who or user(),
            "why": why,
            "when": _now(),
        }

    def _keep(self, event: dict[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
        # Numbered, as clocks are set back; no two that write at one moment write over each other.
        name = f"{_EVENT}{len(self._events()) + 1:06}.{uuid.uuid4().hex[:6]}"
        figures = {k: v for k, v in metrics.items() if k in FIGURES}
        text = json.dumps({**event, "why": event["why"][:2000], "metrics": figures})
        self.registry.client.set_registered_model_tag(self.image_set, name, text)
        return {**event, "changed": True}

    def _events(self) -> list[dict[str, Any]]:
        """Return the events that were kept, newest first."""
        model = self._model()
        tags = {} if model is None else model.tags
        named = sorted((k for k in tags if k.startswith(_EVENT)), reverse=True)
        return [json.loads(tags[name]) for name in named]

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold the set's lock: changes from this home are made one after the other."""
        folder = self.registry.home / "sets"
        folder.mkdir(parents=True, exist_ok=True)
        return locked(
            folder / f"{self.image_set}.service.lock", 60, work=f"a change of {self.image_set}"
        )


def _copy_of(version: Any) -> tuple[str, str]:
    return version.tags.get(_MODEL, ""), version.tags.get(_VERSION, "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
