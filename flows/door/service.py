"""What is in service for an image set, in Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.runtime.console import Reporter
from flows.runtime.home import Home
from headwater.files import read_regular

if TYPE_CHECKING:
    import pandas as pd

    from flows.retraining.retrain import Retrained
    from flows.runtime.settings import Settings
    from flows.serving.feedback import Heard
    from storage.registry.service.in_service import InService


class OpenService:
    """The model in service of an image set; `OpenHome.service` gives it.

    Examples
    --------
    >>> import headwater, tempfile
    >>> headwater.open(tempfile.mkdtemp()).service("bolts").champion is None
    True
    """

    def __init__(
        self,
        home: Home,
        image_set: str,
        settings: Callable[..., tuple[Settings, Home]],
        *,
        quiet: bool = False,
    ) -> None:
        self.home, self.image_set = home, image_set
        self._settings, self._quiet = settings, quiet

    def __repr__(self) -> str:
        return f"headwater.open({str(self.home.root)!r}).service({self.image_set!r})"

    @property
    def champion(self) -> dict[str, Any] | None:
        """What is in service, as `storage.registry.service.in_service.InService.champion` says."""
        return self._service().champion()

    def promote(self, model: str, *, why: str = "", by: str = "") -> dict[str, Any]:
        """Put a head's model in service: ``HEAD``, ``HEAD@VERSION`` or ``HEAD@ALIAS``.

        Returns the event, as `InService.promote` does, and raises what that does.
        """
        from flows.retraining.locked import locked_images  # late: MLflow takes seconds
        from flows.use.models.service import promote  # late: likewise

        more = {**self._told(), "locked": locked_images(self.home, self.image_set)}
        return promote(self.home, self.image_set, model, why=why, who=by, **more)

    def card(self) -> str:
        """Return the card of the model in service, as Markdown; see `flows.use.models.card`."""
        from flows.retraining.locked import locked_images  # late: MLflow takes seconds
        from flows.use.models.card import card_of  # late: torch takes seconds

        return card_of(self.home, self.image_set, locked_images(self.home, self.image_set))

    def rollback(self, to: str | int = "", *, why: str = "", by: str = "") -> dict[str, Any]:
        """Put in service again what was there before the champion, or the version `to`.

        Returns the event, as `InService.rollback` does, and raises what that does.
        """
        from flows.use.models.service import rollback  # late: MLflow takes seconds

        return rollback(self.home, self.image_set, why=why, who=by, to=str(to), **self._told())

    def history(self) -> pd.DataFrame:
        """Return what was done, newest first: a row an event, with the model's figures."""
        import pandas as pd  # late: takes half a second

        from flows.use.models.service import history_of  # late: MLflow takes seconds

        events, _ = history_of(self.home, self.image_set)
        return pd.DataFrame([e | e.pop("metrics") for e in events])

    def retrain(self, *, again: bool = False, **settings: Any) -> Retrained:
        """Take in new images, train, and put the new model in service if it is no worse.

        Parameters
        ----------
        again
            Judge also what was judged, or was in service, before.
        **settings
            As of `OpenHome.run`, and those of the gate, as ``auroc_margin=0.01``. Without heads
            the champion's is trained, as it was.

        Raises
        ------
        HeadwaterError
            As of `flows.retraining.run.retrain`.
        """
        from flows.retraining.run import retrain  # late: torch takes seconds

        made, home = self._settings("retrain", self.image_set, **settings)
        with Reporter(quiet=self._quiet).live() as reporter:
            return retrain(made, home, reporter, again=again)

    def remove(
        self, *images: str, why: str = "", by: str | None = None, undo: bool = False
    ) -> pd.DataFrame:
        """Take images out of the set, or in again; return which models learnt from them.

        Columns are those of `flows.use.models.lineage.learnt_from`. Nothing learns from them any
        more, though their files stay; `retrain` makes a model without them.

        Parameters
        ----------
        *images
            The end of a path, a path, or the beginning of a hash.
        why, by
            Kept with it; by default the user of this process says so.
        undo
            Take them in again.

        Raises
        ------
        DataError
            As of `flows.use.review.remove` and `take_back`.
        """
        import pandas as pd  # late: takes half a second

        from flows.use.models.lineage import learnt_from  # late: MLflow takes seconds
        from flows.use.review import remove, take_back  # late: torch takes seconds

        if undo:
            rows = take_back(self.home, self.image_set, images)
        else:
            rows = remove(self.home, self.image_set, images, why=why, who=by)
        return pd.DataFrame(learnt_from(self.home, self.image_set, [r["sha256"] for r in rows]))

    def said(
        self,
        *,
        since: str = "",
        until: str = "",
        limit: int | None = None,
        answered: bool | None = None,
    ) -> pd.DataFrame:
        """Return what the models in service said, newest first: a row an answer, with feedback.

        Parameters and errors as of `flows.serving.kept.Kept.rows`, columns as of `Said`.
        """
        import pandas as pd  # late: takes half a second

        from flows.serving.kept import Kept  # late: opening a home reads nothing

        with Kept(self.home, self.image_set) as kept:
            rows = kept.rows(since=since, until=until, limit=limit, answered=answered)
        return pd.DataFrame([dataclasses.asdict(row) for row in rows])

    def feedback(
        self, image: str | int | Path, answer: str = "", *, by: str = "", take_back: bool = False
    ) -> Heard:
        """Say what a picture is that the model in service judged.

        Parameters
        ----------
        image
            The number of an answer, 8 digits or more of the picture's digest, or its file.
        answer, by, take_back
            As of `flows.serving.feedback.Feedback.say`, which says what comes of it.

        Raises
        ------
        DataError
            Where the model was never asked about it, or the answer is none.
        """
        from flows.serving.feedback import Feedback  # late: torch takes seconds
        from flows.serving.kept import Kept  # late: see above

        settings, home = self._settings("models", self.image_set)
        file = Path(str(image))
        content = read_regular(file) if file.is_file() else None
        with Kept(home, self.image_set, settings.keep) as kept:
            desk = Feedback(home, self.image_set, kept)
            return desk.say(str(image), answer, by=by, take_back=take_back, content=content)

    def realised(self, since: str = "") -> dict[str, Any]:
        """Return the rates that the champion keeps, as `flows.serving.realised.realised` does."""
        from flows.serving.realised import realised  # late: torch takes seconds

        return realised(self.home, self.image_set, since)

    def _told(self) -> dict[str, Any]:
        """Return who is told of a change, and where it is said that one was not."""
        made, _ = self._settings("retrain", self.image_set)
        return {"hooks": made.hooks, "tell": Reporter(quiet=self._quiet).line}

    def _service(self) -> InService:
        from flows.use.models.service import service_of  # late: MLflow takes seconds

        return service_of(self.home, self.image_set)
