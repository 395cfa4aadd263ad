"""One family of errors: each names the culprit, what was expected and the remedy.

Every error is a `HeadwaterError` and also the builtin that fits, so that callers may catch either.
At the command line a `HeadwaterError` is printed without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from headwater.addresses import hidden
from headwater.text import shown

#: Between the lines of a culprit of several: no name holds it, as no file system can.
_NEXT = "\0\n"


def several(lines: Iterable[str]) -> str:
    """Return one culprit of several, which an error tells a line each."""
    return _NEXT.join(lines)


class HeadwaterError(Exception):
    """Base of all errors a user can cause or cure.

    Parameters
    ----------
    culprit
        What is wrong, with its name: a file, an option, a layer.
    expected
        What would have been right, valid choices included.
    remedy
        What the user can do now.

    Examples
    --------
    >>> print(ConfigError("backbone 'resnet81'", expected="a timm model", remedy="see --help"))
    backbone 'resnet81'
      expected: a timm model
      remedy: see --help
    """

    def __init__(self, culprit: str, *, expected: str = "", remedy: str = "") -> None:
        # Here, so that no message, log, run or database that keeps one shows a password.
        self.culprit, self.expected, self.remedy = map(hidden, (culprit, expected, remedy))
        super().__init__(self.culprit, self.expected, self.remedy)

    def __str__(self) -> str:
        # A name with a line break in it must not look like a line of ours: only lines that
        # `several` made are lines.
        text = "\n".join(map(shown, self.culprit.split(_NEXT)))
        if self.expected:
            text += f"\n  expected: {shown(self.expected)}"
        if self.remedy:
            text += f"\n  remedy: {shown(self.remedy)}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and Dask sends errors pickled.
        return partial(type(self), self.culprit, expected=self.expected, remedy=self.remedy), ()


class ConfigError(HeadwaterError, ValueError):
    """A mistake in an option or in `headwater.yaml`."""


class DataError(HeadwaterError, ValueError):
    """A folder, manifest or mask that cannot be used as asked."""


class ImageError(HeadwaterError, ValueError):
    """One image that cannot be read; it is set aside and the run goes on."""


class WeightsError(HeadwaterError, ValueError):
    """Backbone weights that are missing, unreadable or do not fit the backbone."""


class LayerError(HeadwaterError, LookupError):
    """A node that the backbone does not have, or a layer that is not stored."""


class StoreError(HeadwaterError, RuntimeError):
    """The feature store cannot do what was asked."""


class FeatureRangeError(StoreError, ValueError):
    """Features that are not finite, out of the stored dtype's range, constant or misshapen."""


class SnapshotError(StoreError, LookupError):
    """A snapshot, tag or image set that does not exist."""


class DiskFullError(StoreError, OSError):
    """No space left; the last snapshot is intact."""


class TrainingError(HeadwaterError, ArithmeticError):
    """A training that diverged; names the step and the remedy."""


class GrowthError(HeadwaterError, RuntimeError):
    """A head that cannot take images in or out as it is, and has to be trained in full."""


class ShapeError(HeadwaterError, ValueError):
    """Feature maps of another shape than the head was built for."""


class NotFittedError(HeadwaterError, RuntimeError):
    """A head asked to score before it was fitted."""

    @classmethod
    def of(cls, head: str) -> NotFittedError:
        """Return the error of a head, by its name."""
        return cls(
            f"{head} was asked to score before it was fitted",
            expected="a trained head",
            remedy="call fit, or load the state of a trained head",
        )


class ModelError(HeadwaterError, LookupError):
    """A registered model, version or run that does not exist."""
