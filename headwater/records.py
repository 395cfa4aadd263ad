"""Short lists of what happened, newest first, each a JSON file: read, and added to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.errors import DataError
from headwater.files import locked, write_text


def read_records(file: Path, what: str) -> list[dict[str, Any]]:
    """Return the records of a file; none where it is not there.

    Parameters
    ----------
    what
        Of what they are, for the message.

    Raises
    ------
    DataError
        Where the file is damaged.
    """
    try:
        return [dict(one) for one in json.loads(file.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{file}, {what}, cannot be read: {error}",
            expected="as it was written",
            remedy="restore it from a copy of the home; what happens next puts it by",
        ) from error


def add_records(file: Path, new: Sequence[Mapping[str, Any]], what: str, most: int) -> None:
    """Put records before those of a file, of which `most` are kept.

    One with the ``id`` of an older one takes its place. A damaged file is put by, as
    ``NAME.damaged``.

    Raises
    ------
    OSError
        Where it cannot be written.
    StoreError
        Where another process holds it for a minute.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock"), 60, work=f"record of {what}"):
        try:
            known = read_records(file, what)
        except DataError:
            known = []
            with contextlib.suppress(OSError):
                file.replace(file.with_suffix(".damaged"))
        mine = {one["id"] for one in new if "id" in one}
        kept = [*map(dict, new), *(one for one in known if one.get("id") not in mine)]
        write_text(file, json.dumps(kept[:most], indent=1))
