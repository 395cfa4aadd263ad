"""The rows of `flows.use.predict.predict` as tables for spreadsheets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.errors import ConfigError
from headwater.files import write_text
from headwater.samples import IMAGE, PAIR
from headwater.text import csv_text
from storage.serving.prediction import Region


def write_tables(rows: Sequence[Mapping[str, Any]], file: Path) -> list[Path]:
    """Write the rows of `flows.use.predict.predict` as tables for spreadsheets; return their files.

    `file` has a row a sample, with the number of its regions; beside it ``NAME-regions.csv`` has a
    row a region.

    Raises
    ------
    ConfigError
        Where they cannot be written.
    """
    names = PAIR.images if rows and "current" in rows[0] else IMAGE.images
    # Of what was not looked at, no region is no finding.
    told = [{**row, "regions": None if row["error"] else len(row["regions"])} for row in rows]
    found = [
        {**{name: row[name] for name in names}, **region}
        for row in rows
        for region in row["regions"]
    ]
    fields = [field.name for field in dataclasses.fields(Region)]
    tables = {
        file: csv_text(told),
        file.with_name(f"{file.stem}-regions{file.suffix}"): csv_text(found, [*names, *fields]),
    }
    for path, text in tables.items():
        try:
            # Spreadsheets take what is no ASCII for UTF-8 only where this mark says so.
            write_text(path, text if text.isascii() else f"\ufeff{text}")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", expected="a file for --csv") from error
    return list(tables)
