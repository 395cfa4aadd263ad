"""Pages written: to a file, and to MLflow beside what they tell of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.pictures.page.page import page
from flows.runtime.home import Home
from flows.use.report.gather import MOST, report_data, review_data
from headwater.errors import ConfigError, StoreError
from headwater.files import expand_user, write_text
from storage.registry.registry import Registry

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: The artifact that a report is kept as.
ARTIFACT = "report.html"


@dataclass
class Page:
    """A page that was written.

    Parameters
    ----------
    file
        Where it is.
    run_id
        MLflow run that keeps it, too; empty where none does.
    notes
        What is not on it, and why.
    """

    file: Path
    run_id: str = ""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {"file": str(self.file), "run_id": self.run_id, "notes": self.notes}


def write_report(
    home: Home,
    image_set: str,
    reporter: Reporter,
    *,
    file: Path | None = None,
    models: Sequence[str] = (),
    most: int = MOST,
) -> Page:
    """Write the page about a set's models, and keep it with the run of the command behind them.

    Other parameters and errors as of `flows.use.report.gather.report_data`.

    Parameters
    ----------
    file
        By default ``report.html`` in the set's folder of the home's pictures.
    """
    file = expand_user(file or home.pictures / image_set / "report.html")
    _check(file)
    data = report_data(home, image_set, reporter, models=models, most=most)
    text = page(data, f"{image_set}: models")
    _write(file, text)
    made = Page(file, notes=list(data["notes"]))
    run_id = _command_of(home, image_set, data)
    try:
        Registry(home.root, home.tracking_url).attach(run_id, text, ARTIFACT)
        made.run_id = run_id
    except (StoreError, OSError) as error:
        made.notes.append(f"MLflow does not keep the page: {str(error).splitlines()[0]}")
    return made


def write_review(
    home: Home,
    image_set: str,
    reporter: Reporter,
    file: Path,
    *,
    head: str | None = None,
    served: Sequence[Mapping[str, Any]] = (),
) -> Page:
    """Write the page of the normals that look least normal; as of `review_data`."""
    file = expand_user(file)
    _check(file)
    data = review_data(home, image_set, reporter, head=head, served=served)
    _write(file, page(data, f"{image_set}: odd normals"))
    return Page(file)


def _command_of(home: Home, image_set: str, data: Mapping[str, Any]) -> str:
    """Return the run of the command that trained the newest model shown, else that training's."""
    rows = [row for board in data["boards"] for row in board["rows"]]
    newest = max(rows, key=lambda row: (row["full"], row["created"]))["run_id"]
    facts = Registry(home.root, home.tracking_url).facts(newest)
    return (facts[1] if facts else {}).get("headwater.command_run", newest)


def _check(file: Path) -> None:
    """Say that a page cannot be written before all is gathered for it."""
    if file.is_dir() or (file.parent.exists() and not file.parent.is_dir()):
        raise ConfigError(f"--out {file}", expected="a file to write the page to, as report.html")


def _write(file: Path, text: str) -> None:
    try:
        write_text(file, text)
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror}", expected="a file that can be written", remedy="see --out"
        ) from error
