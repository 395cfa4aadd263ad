"""One folder holds all state: store, MLflow, checkpoints, Prefect's own files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.addresses import bare, whole
from headwater.errors import DataError
from headwater.files import expand_user, locked, sqlite_url, write_text
from headwater.samples import REMOVED

#: How many seconds Prefect's temporary server may take to start.
PATIENCE = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
#: Set before any library is imported that would read them. A user's own value wins.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # The command reports errors itself, without a traceback where the user can cure them.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_CLI_COLORS": "false",
    # The embedded API takes 7-20 s to start on two busy cores, minutes on two that ten programs
    # share; the default patience is 20 s.
    PATIENCE: "300",
    # `mlflow ui` would start eight worker processes for jobs that nobody here submits: 2 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


#: Where a user says which database Prefect's own server takes.
_PREFECT_DATABASE = {
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_DRIVER",
    "PREFECT_SERVER_DATABASE_HOST",
}
#: Files of the working folder, or of Prefect's own, in which it may be told of a server.
_PREFECT_FILES = {"prefect.toml": "", "pyproject.toml": "[tool.prefect", ".env": "PREFECT_"}
#: A company's proxy must never be asked for what is on this machine.
_HERE = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Home:
    """The folder of all state, and where things are in it.

    Parameters
    ----------
    root
        Absolute path; created when used.
    store_url
        Where feature stores live if not below `root`: a folder or ``s3://bucket/prefix``.
    tracking_url
        MLflow tracking URI if not the SQLite database below `root`; kept bare, see
        `headwater.addresses`.
    artifacts_url
        Where MLflow's artifacts go if not below `root`.
    """

    root: Path
    store_url: str | None = None
    tracking_url: str | None = None
    artifacts_url: str | None = None

    def __post_init__(self) -> None:
        if self.tracking_url is not None:
            object.__setattr__(self, "tracking_url", bare(self.tracking_url))

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker connects, too: a pickle has the address as it was given. JSON, which Prefect
        # keeps, never has.
        tracking = None if self.tracking_url is None else whole(self.tracking_url)
        return Home, (self.root, self.store_url, tracking, self.artifacts_url)

    @classmethod
    def at(
        cls,
        root: Path | str,
        store: str | None = None,
        tracking: str | None = None,
        artifacts: str | None = None,
        *,
        write: bool = True,
    ) -> Home:
        """Return the home at `root`.

        With `write` it is made where it is missing, for its owner alone; a folder that is there
        keeps its rights. Without, it is only to be looked at and may be missing or read-only.

        Raises
        ------
        DataError
            Where the path exists and is no folder, or cannot be written.
        """
        path = expand_user(root).absolute()
        remedy = "give another folder with --home or HEADWATER_HOME"
        if str(path).encode(errors="replace") != os.fsencode(path):
            raise DataError(
                f"{path} is not UTF-8", expected="a name that databases can hold", remedy=remedy
            )
        if path.exists() and not path.is_dir():
            raise DataError(f"{path} is not a folder", expected="a folder for state", remedy=remedy)
        if not write:
            return cls(path, store, tracking, artifacts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}",
                expected="a folder this user may write to",
                remedy=remedy,
            ) from error
        return cls(path, store, tracking, artifacts)

    @property
    def store(self) -> str:
        """Location given to `FeatureStore.open`."""
        return self.store_url or str(self.root / "store")

    @property
    def checkpoints(self) -> Path:
        """Folder of training checkpoints."""
        return self.root / "checkpoints"

    @property
    def scratch(self) -> Path:
        """Folder of what is gone when a command ends."""
        return self.root / "tmp"

    def narrow_umask(self) -> None:
        """Have this process, and those it starts, give others no more than the home itself does.

        For a command: what it writes it writes in the home. A home of mode 0700 gets files of 0600,
        one of 0750 of 0640. It is never widened.
        """
        if self.root.is_dir():
            os.umask(os.umask(0o077) | (~self.root.stat().st_mode & 0o077))

    @property
    def pictures(self) -> Path:
        """Folder of pictures that commands write."""
        return self.root / "pictures"

    @property
    def file_cache(self) -> Path:
        """SQLite file that remembers which file holds which bytes."""
        return self.root / "files.sqlite"

    def card(self, image_set: str) -> dict[str, Any]:
        """Return what was last said of an image set: its folders and backbone; empty if nothing."""
        path = self.root / "sets" / f"{image_set}.json"
        return _here(json.loads(path.read_text()), self.root) if path.exists() else {}

    def named(self) -> list[str]:
        """Return the names of the image sets that something was said of."""
        return sorted(path.stem for path in (self.root / "sets").glob("*.json"))

    def write_card(self, image_set: str, card: dict[str, Any]) -> None:
        """Remember an image set's folders and backbone for the commands that follow."""
        path = self.root / "sets" / f"{image_set}.json"
        # Where it was written, so that a home that was moved knows what came along.
        card = {**card, "home": str(self.root)}
        write_text(path, json.dumps(card, indent=2, sort_keys=True))

    def groups(self, image_set: str) -> dict[str, str]:
        """Return the group of each image of a set that was ever said to be in one, by content."""
        path = self.root / "groups" / f"{image_set}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def add_groups(self, image_set: str, groups: Mapping[str, str]) -> None:
        """Remember groups of images; those of images that are not named stay."""
        known = self.groups(image_set)
        if (new := {**known, **groups}) != known:
            path = self.root / "groups" / f"{image_set}.json"
            write_text(path, json.dumps(new, indent=0, sort_keys=True))

    def reviews(self, image_set: str) -> dict[str, dict[str, str]]:
        """Return what was said of normals: ``{image: {"said", "who", "when", "path"}}``.

        Of those that a retraining holds also ``why``, ``score`` and ``p_value``.
        """
        path = self.root / "reviews" / f"{image_set}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def add_reviews(self, image_set: str, reviews: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember what is said of normals in place of what was said of them before.

        Of one of which nothing is said any more, an empty mapping, all is forgotten.
        """
        path = self.root / "reviews" / f"{image_set}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Feedback, a review and a retraining may each say something at the same time.
        with locked(path.with_suffix(".lock"), 60, work="review"):
            said = {k: v for k, v in {**self.reviews(image_set), **reviews}.items() if v}
            write_text(path, json.dumps(said, indent=1))

    def removed(self, image_set: str) -> set[str]:
        """Return the images that were taken out of a set, by SHA-256."""
        return {k for k, v in self.reviews(image_set).items() if v["said"] == REMOVED}

    def prepare_environment(self) -> None:
        """Set the quiet defaults and Prefect's home. Call before Prefect or MLflow is imported."""
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        if self.artifacts_url:
            # The environment is how it reaches the registry in every worker process.
            os.environ["HEADWATER_ARTIFACTS"] = self.artifacts_url
        os.environ.setdefault("PREFECT_HOME", str(self.root / "prefect"))
        database = own_prefect_database()
        if database is not None and set(str(database)) & set("%?#"):
            # Prefect's own default is this path, unquoted.
            os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = sqlite_url(
                database, "sqlite+aiosqlite"
            )
        if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
            for name in ("NO_PROXY", "no_proxy"):
                known = [h for h in os.environ.get(name, "").split(",") if h]
                if "*" not in known:
                    os.environ[name] = ",".join([*known, *(h for h in _HERE if h not in known)])
        # Local results only: a remote storage block would be somebody's deliberate choice.
        os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(self.root / "prefect" / "storage"))


def _here(card: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return a set's card with the paths that moved along with the home.

    What lies in the home is where the home is. What lay beside it, in the folder that holds both,
    is taken from beside it where it is not at its old place any more and is there.
    """
    was = Path(card.pop("home", root))
    if was == root:
        return card

    def moved(value: Any) -> Any:
        path = Path(value) if isinstance(value, str) and value.startswith("/") else None
        if path is None:
            return value
        if path.is_relative_to(was):
            return str(root / path.relative_to(was))
        if path.is_relative_to(was.parent) and not path.exists():
            beside = root.parent / path.relative_to(was.parent)
            return str(beside) if beside.exists() else value
        return value

    backbone = card.get("backbone", {})
    if "weights" in backbone:
        card["backbone"] = {**backbone, "weights": moved(backbone["weights"])}
    return {key: moved(value) for key, value in card.items()}


def own_prefect_database() -> Path | None:
    """Return the file that is the database of Prefect's own server; None where you name another."""
    if _PREFECT_DATABASE & set(os.environ):
        return None
    return expand_user(os.environ.get("PREFECT_HOME", "~/.prefect")) / "prefect.db"


def prefect_is_configured() -> bool:
    """Return whether something may name a Prefect server that is to hear of every run.

    Said without importing Prefect. Its server's own answer may still be that there is none.
    """
    if os.environ.keys() & {"PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"}:
        return True
    place = expand_user(os.environ.get("PREFECT_HOME", "~/.prefect"))
    return (place / "profiles.toml").exists() or any(
        Path(name).is_file() and sign in Path(name).read_text(errors="replace")
        for name, sign in _PREFECT_FILES.items()
    )


@contextmanager
def working_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a temporary folder below `parent`, removed afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as name:
        yield Path(name)
