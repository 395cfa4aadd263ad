"""Checkpoints of a training: atomic, identified, free of pickled code."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import torch

from headwater.files import replacing


class Checkpoint:
    """The checkpoint file of one training.

    The file's name is the training's key, and the key is inside too: a checkpoint of another
    configuration or other data is never resumed. A half-written file is never seen, since it is
    written under another name and renamed.

    Parameters
    ----------
    folder
        Made when the first checkpoint is saved.
    key
        Hash of all that decides the training's result.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.path = Path(folder) / f"{key}.ckpt"

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors, numbers, text, lists, mappings) in place of what was there."""
        # Two trainings of one key may run at once (a lost worker that was not dead).
        with replacing(self.path) as new, new.open("wb") as file:
            torch.save({"key": self.key, **state}, file)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None where there is none that can be used.

        A damaged file is set aside as ``*.damaged``, with a warning: the training begins anew.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # any damage means the same
            self._set_aside(f"cannot be read ({str(error).splitlines()[0]})")
            return None
        if not isinstance(state, dict) or state.get("key") != self.key:
            self._set_aside("is of another training")
            return None
        return state

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_suffix(".damaged")
        with contextlib.suppress(OSError):
            self.path.replace(aside)
        warnings.warn(
            f"checkpoint {self.path} {why}; it is set aside as {aside.name}, training begins anew",
            stacklevel=4,
        )
