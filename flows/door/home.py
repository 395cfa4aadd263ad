"""A home, opened: every daily job as a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.door.watching import Watched
from flows.runtime.console import Reporter
from flows.runtime.given import Given
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.runtime.sources import by_keyword
from headwater.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from flows.door.detector import LoadedModel
    from flows.door.service import OpenService
    from flows.door.store import OpenStore
    from flows.extraction.report import ExtractionReport
    from flows.training.results import RunResult
    from flows.use.models.reproduce import Reproduced

#: Names of heads, or heads with their settings.
Heads = str | Iterable[str] | Mapping[str, Mapping[str, Any]]


class OpenHome(Watched):
    """The folder of all state, opened; `headwater.open` gives it.

    Nothing is read and nothing starts until a method needs it. Keywords are settings by their
    names in docs/settings.md (``size=256, preset="small"``): what the command of the same name
    takes, and what only the file has. They come before environment variables and the file.

    Parameters
    ----------
    home
        Where state lives.
    config
        A settings file, or None for ``./headwater.yaml`` if there is one.
    quiet
        Whether progress is kept to itself.
    """

    def __init__(self, home: Home, config: Path | None = None, *, quiet: bool = False) -> None:
        self.home, self._config, self._quiet = home, config, quiet

    def __repr__(self) -> str:
        return f"headwater.open({str(self.home.root)!r})"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI of this home: ``mlflow.set_tracking_uri(home.tracking_uri)``.

        That of a database has the user and password that it was given with: not to be printed.
        """
        from storage.registry.registry import Registry  # late: MLflow takes seconds

        return Registry(self.home.root, self.home.tracking_url).address

    def sets(self) -> list[str]:
        """Return the names of the image sets that have features, or were given as pairs."""
        from storage.store.engine import list_sets  # late: opening a home reads nothing

        return sorted(list_sets(self.home.store))

    # --- the job ---------------------------------------------------------------------------------

    def run(
        self,
        image_set: str,
        images: str | Path | None = None,
        *,
        heads: Heads | None = None,
        rehash: bool = False,
        **settings: Any,
    ) -> RunResult:
        """Extract what is missing, train the heads in parallel, evaluate and register them.

        What is done already is not done again. Give `images` (or ``normal=``, or ``pairs=``) the
        first time; a set remembers.

        Parameters
        ----------
        image_set
            Name of the set.
        images
            Folder in MVTec layout.
        heads
            Which heads: names, or a mapping of names to their settings.
        rehash
            Read every file, even those that look unchanged.
        settings
            See docs/settings.md.

        Raises
        ------
        HeadsFailedError
            After all have ended, where some failed; its `result` has what the others gave.
        HeadwaterError
            For a mistake in the settings, images or weights: nothing was done.
        """
        from flows.pipeline import run_pipeline  # late: torch takes seconds

        made, home = self._settings("run", image_set, images=images, heads=heads, **settings)
        with Reporter(quiet=self._quiet).live() as reporter:
            return run_pipeline(made, home, reporter, rehash=rehash).or_raise()

    def extract(
        self,
        image_set: str,
        images: str | Path | None = None,
        *,
        heads: Heads | None = None,
        rehash: bool = False,
        **settings: Any,
    ) -> ExtractionReport:
        """Bring the feature store up to date with the images, for these heads; train nothing.

        Parameters as of `run`. The report says what was computed and what was set aside.
        """
        from flows.extraction.extract import extract_set  # late: torch takes seconds

        made, home = self._settings("extract", image_set, images=images, heads=heads, **settings)
        with Reporter(quiet=self._quiet).live() as reporter:
            return extract_set(made, home, reporter, rehash=rehash)

    def train(
        self,
        image_set: str,
        *,
        heads: Heads | None = None,
        snapshot: str | None = None,
        known_by: str | None = None,
        **settings: Any,
    ) -> RunResult:
        """Train heads from what is stored, without touching the images' features.

        Other parameters and errors as of `run`.

        Parameters
        ----------
        snapshot
            Id or tag to train on; the newest by default.
        known_by
            ISO 8601 date or time: only images that had arrived by then.
        """
        from flows.pipeline import train_pipeline  # late: torch takes seconds

        made, home = self._settings("train", image_set, heads=heads, **settings)
        with Reporter(quiet=self._quiet).live() as reporter:
            done = train_pipeline(made, home, reporter, snapshot=snapshot, known_by=known_by)
        return done.or_raise()

    # --- looking ---------------------------------------------------------------------------------

    def leaderboard(self, image_set: str) -> pd.DataFrame:
        """Return the set's registered models, one row a model, best first.

        Columns are what the registry tells of a model, and each figure under its own name.
        """
        import pandas as pd  # late: opening a home is quick

        from storage.registry.registry import Registry  # late: MLflow takes seconds

        registry = Registry(self.home.root, self.home.tracking_url)
        rows = registry.leaderboard(image_set)
        if not rows:
            raise DataError(**registry.no_models(image_set))
        return pd.DataFrame(
            [{**{k: v for k, v in r.items() if k != "metrics"}, **r["metrics"]} for r in rows]
        )

    def backbones(
        self, word: str | None = None, *, measure: bool = False, weights: str | Path | None = None
    ) -> pd.DataFrame:
        """Return backbones, one row each: weights, size, speed on this machine, heads.

        Columns are the fields of `flows.use.backbones.Listed`.

        Parameters
        ----------
        word
            A part of timm's name; without it those whose weights are here or can be installed, and
            those that are often used.
        measure
            Measure the speeds that are not known of this machine, some seconds each.
        weights
            File or folder to look for weights in.

        Raises
        ------
        ConfigError
            Where no name has the word.
        """
        import pandas as pd  # late: opening a home is quick

        from flows.use.backbones import look_at, matching  # late: torch takes seconds

        given = None if weights is None else Path(weights)
        found = look_at(matching(word, given), self.home, given, measure=measure)
        return pd.DataFrame([one.to_json() for one in found])

    def compare(self, image_set: str, one: str, other: str) -> dict[str, Any]:
        """Return what differs between two models of a set, as `flows.use.compare.compare_two`.

        Parameters
        ----------
        image_set
            Name of the set.
        one, other
            ``HEAD@VERSION``, ``HEAD@ALIAS`` or ``HEAD``.
        """
        from flows.use.compare import compare_two  # late: MLflow takes seconds
        from storage.registry.registry import Registry  # late: likewise

        registry = Registry(self.home.root, self.home.tracking_url)
        return compare_two(registry, image_set, one, other)

    def lineage(self, model: str) -> dict[str, Any]:
        """Return where ``SET.HEAD/VERSION`` comes from, as of `flows.use.models.lineage`."""
        from flows.use.models.lineage import lineage  # late: MLflow takes seconds

        return lineage(self.home, model)

    def reproduce(
        self, model: str, *, device: str | None = None, register: bool = False
    ) -> Reproduced:
        """Train a registered model again from its lineage, and compare all scores.

        Parameters and errors as of `flows.use.models.reproduce.reproduce`.
        """
        from flows.use.models.reproduce import reproduce  # late: torch takes seconds

        with Reporter(quiet=self._quiet).live() as reporter:
            return reproduce(self.home, model, reporter, device=device, register=register)

    def report(
        self,
        image_set: str,
        out: str | Path | None = None,
        *,
        models: Iterable[str] = (),
        most: int = 500,
    ) -> Path:
        """Write one page about a set's models for a browser, and return its file.

        MLflow keeps it, too; errors as of `flows.use.report.write.write_report`.

        Parameters
        ----------
        image_set
            Name of the set.
        out
            File to write, its folder too; by default below the home.
        models
            ``HEAD@VERSION`` each, to be shown in full; by default the newest of each head.
        most
            Pictures of test samples at most.
        """
        from flows.use.report.write import write_report  # late: torch takes seconds

        file, chosen = None if out is None else Path(out), tuple(models)
        with Reporter(quiet=self._quiet).live() as shown:
            return write_report(
                self.home, image_set, shown, file=file, models=chosen, most=most
            ).file

    def review(
        self,
        image_set: str,
        *,
        head: str | None = None,
        accept: Iterable[str] = (),
        reject: Iterable[str] = (),
        by: str | None = None,
    ) -> pd.DataFrame:
        """Return the set's normals, those that look least normal first; settle some of them.

        Columns and errors are those of `flows.use.review.odd_normals`, and of `settle`. What is
        said of a normal holds from the next training on.

        Parameters
        ----------
        head
            As this head sees them alone.
        accept, reject
            Images that are normal, or are not: the end of a path, or the beginning of a hash.
        by
            Who says so; by default the user of this process.
        """
        import pandas as pd  # late: opening a home is quick

        from flows.use.review import odd_normals, settle  # late: torch takes seconds

        rows, _ = odd_normals(self.home, image_set, head)
        if accept or reject:
            names = {"accept": list(accept), "reject": list(reject)}
            said = settle(self.home, image_set, rows, who=by, **names)
            rows = [{**row, **said.get(row["sha256"], {})} for row in rows]
        return pd.DataFrame(rows)

    def detector(
        self,
        image_set: str,
        head: str | None = None,
        version: str | int | None = None,
        *,
        device: str = "auto",
    ) -> LoadedModel:
        """Return a registered model, loaded, to predict with.

        Parameters
        ----------
        image_set
            Name of the set.
        head
            Whose model; without it the one in service, else that of the set's only head, or of
            several that of the first one that the set was last extracted for.
        version
            Number or alias of the head's; without it its champion, else its newest.
        device
            ``auto``, ``cpu`` or ``cuda[:n]``.

        Raises
        ------
        ModelError
            Where there is no such model.
        """
        from flows.door.detector import LoadedModel  # late: torch takes seconds
        from flows.use.predict import open_model  # late: torch takes seconds

        first = self.home.card(image_set).get("heads", ())
        found, model = open_model(self.home, image_set, head, version, first=first, device=device)
        return LoadedModel(found, model["model"], str(model["version"]))

    def store(self, image_set: str) -> OpenStore:
        """Return the set's feature store; of a set of pairs name a side, ``SET.current``.

        Raises
        ------
        SnapshotError
            Where the set was never extracted.
        """
        from flows.door.store import OpenStore  # late: Icechunk takes a second

        return OpenStore(self.home, image_set)

    def service(self, image_set: str) -> OpenService:
        """Return a set's service: `champion`, `promote`, `rollback`, `history`, `retrain`."""
        from flows.door.service import OpenService  # late: opening a home reads nothing

        return OpenService(self.home, image_set, self._settings, quiet=self._quiet)

    # --- within ----------------------------------------------------------------------------------

    def _settings(self, job: str, image_set: str, **given: Any) -> tuple[Settings, Home]:
        """Return settings and home of the keywords of a job, as its command has them as options."""
        if not isinstance(image_set, str):
            raise ConfigError(f"image set {image_set!r}", expected="a name, such as 'bolts'")
        heads = given.get("heads")
        if isinstance(heads, Iterable) and not isinstance(heads, str | Mapping):
            given["heads"] = list(heads)
        if heads is not None and not isinstance(heads, int | float) and not given["heads"]:
            raise ConfigError(f"heads = {heads!r}", expected="one head or more, such as patchcore")
        values = {
            "home": self.home.root,
            "store": self.home.store_url,
            "tracking": self.home.tracking_url,
            "artifacts": self.home.artifacts_url,
            "image_set": image_set,
            **by_keyword(job, given),
        }
        return Given(values, config=self._config).open(
            called=lambda setting: f"{setting.keyword} = "
        )


def open_home(
    home: str | Path | None = None,
    *,
    store: str | None = None,
    tracking: str | None = None,
    artifacts: str | None = None,
    config: str | Path | None = None,
    quiet: bool = False,
) -> OpenHome:
    """Open a home; see `headwater.open`."""
    file = None if config is None else Path(config)
    if file and not file.is_file():
        raise DataError(f"{file}: no such file", expected="settings", remedy="headwater init")
    values = {"home": home, "store": store, "tracking": tracking, "artifacts": artifacts}
    _, place = Given(values, config=file).open(called=lambda setting: f"{setting.keyword} = ")
    return OpenHome(place, file, quiet=quiet)
