"""What a command or a Python call gives of settings, opened: settings and the home."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.runtime.settings import Setting, Settings
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from flows.runtime.home import Home


@dataclass(frozen=True)
class Given:
    """What is given of settings, by dotted keys.

    Parameters
    ----------
    values
        ``{"backbone.name": "resnet50"}``, as values or as text.
    tuned
        ``HEAD.KEY=VALUE``: settings of heads that will run, named or not.
    config
        Settings file; by default ``./headwater.yaml`` if there is one.
    own_process
        Whether all that this process writes is the home's: then its files get the home's rights.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    tuned: tuple[str, ...] = ()
    config: Path | None = None
    own_process: bool = False

    def open(
        self,
        *,
        sides: bool = False,
        write: bool = True,
        called: Callable[[Setting], str] | None = None,
    ) -> tuple[Settings, Home]:
        """Return the settings, over the environment and the file, and the home, prepared.

        Parameters
        ----------
        sides
            Whether the set may be one side of a set of pairs.
        write
            Jobs that only look pass False: they work in a read-only home and make none.
        called
            How settings are called in messages, as options by default; the value follows.

        Raises
        ------
        ConfigError
            For mistakes in the values, the environment or the file.
        DataError
            Where the home is no folder, or cannot be written.
        """
        from flows.runtime.home import Home  # late: help is quick without all of these
        from flows.runtime.resolve import tune_heads  # late: see above
        from flows.runtime.sources import load_settings  # late: see above
        from flows.runtime.values import assignments  # late: see above
        from storage.store.layout import check_set_name  # late: see above

        if self.values.get("image_set") is not None:
            check_set_name(self.values["image_set"], sides=sides)
        settings = load_settings(self.config, self.values, called)
        places = (settings.store, settings.tracking, settings.artifacts)
        home = Home.at(settings.home, *places, write=write)
        home.prepare_environment()
        if self.own_process:
            home.narrow_umask()
        try:
            tuned = assignments(self.tuned)
        except ValueError as error:
            raise ConfigError(f"--set {' '.join(self.tuned)}", expected=str(error)) from None
        return tune_heads(settings, home, tuned), home
