"""How the sets of a home fare, in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from flows.watching.status import Status


class Watched:
    """The part of `OpenHome` that looks at sets in service."""

    home: Home

    def status(self, *sets: str) -> Status:
        """Return how sets fare in service, and what of it needs a person.

        Its ``status`` is the command's exit status, ``sets`` has a row a set, ``to_json()`` is
        what ``headwater status --json`` prints.

        Parameters
        ----------
        sets
            All of the home where none is named.

        Raises
        ------
        DataError
            Where a set that is named is not in the home.

        Examples
        --------
        >>> import headwater, tempfile
        >>> found = headwater.open(tempfile.mkdtemp()).status()
        >>> found.sets, found.status
        ([], 0)
        """
        from flows.watching.status import status_of  # late: MLflow takes seconds

        return status_of(self.home, sets)
