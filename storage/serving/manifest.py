"""A model's manifest: sealed with a hash of its own, and checked before anything is built by it.

Format 2 holds, among the hashes of the other files, one of itself: of all that it says but that
hash. Format 1, of before, has none; what can be checked without is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heads.judging.calibration import Calibration
from headwater.errors import ModelError
from headwater.version import __version__
from storage.serving.whole import BACKBONE_FILE as BACKBONE_FILE
from storage.serving.whole import FETCH_AGAIN as FETCH_AGAIN
from storage.serving.whole import HEAD_FILE as HEAD_FILE
from storage.serving.whole import MANIFEST as MANIFEST
from storage.serving.whole import MOST as MOST
from storage.serving.whole import seal_of as seal_of

FORMAT, FORMAT_VERSION = "headwater-model", 2
#: The format of before, without a hash of the manifest.
UNSEALED = 1

#: Channels, or positions of a side.
_Side = Annotated[int, Field(ge=1, le=1 << 16)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Head(_Strict):
    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[_Side, _Side, _Side]] = Field(min_length=1)
    map_size: tuple[_Side, _Side]


class _Manifest(_Strict):
    """What of a manifest can be said without knowing the head."""

    headwater: str
    spec: dict[str, Any]
    layers: list[str] = Field(min_length=1)
    head: _Head
    calibration: Calibration
    sha256: dict[str, str]
    region: str | None = None


def sealed(about: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Return the text of a manifest.

    Parameters
    ----------
    about
        What it says, JSON-ready.
    hashes
        SHA-256 of the other two files, by name.
    """
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "headwater": __version__,
        **about,
        "sha256": dict(hashes),
    }
    manifest["sha256"][MANIFEST] = seal_of(manifest)
    # Not sorted: a head reads its layers in the order of its shapes.
    return json.dumps(manifest, indent=2, allow_nan=False)


def read_manifest(data: bytes, place: str) -> dict[str, Any]:
    """Return a manifest from its bytes, where it is whole and can be read here.

    Parameters
    ----------
    data
        Of the file.
    place
        What messages call it.

    Raises
    ------
    ModelError
        Where it is none, was changed, or is of a newer Headwater.
    """
    if len(data) > MOST:
        raise _damaged(place, f"it has {len(data):,} bytes")
    try:
        manifest = json.loads(data, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _damaged(place, f"it is no JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{place} is no manifest of a model", expected=f'"format": "{FORMAT}"')
    version = manifest.get("format_version")
    if type(version) is not int or version not in (UNSEALED, FORMAT_VERSION):
        raise ModelError(
            f"{place} has format version {version!r:.40}",
            expected=f"version {UNSEALED} or {FORMAT_VERSION}",
            remedy=f"open it with Headwater {manifest.get('headwater', '?')!s:.40} or newer",
        )
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or {HEAD_FILE, BACKBONE_FILE} - hashes.keys():
        raise _damaged(place, "it does not hold the hashes of the model's files")
    own = hashes.get(MANIFEST)
    if (own is not None or version != UNSEALED) and own != seal_of(manifest):
        raise _damaged(place, "it was changed: its hash is another")
    try:
        found = _Manifest.model_validate_json(data)
    except (ValidationError, RecursionError) as error:
        raise _damaged(place, _first(error)) from error
    unknown = manifest["calibration"].keys() - Calibration.__dataclass_fields__
    if unknown:
        raise _damaged(place, f"calibration.{min(unknown)} is not known")
    for name in ("area_threshold", "volume_threshold"):
        if (getattr(found.calibration, name) or 0) < 0:
            raise _damaged(place, f"calibration.{name} is below 0")
    return manifest


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _damaged(place: str, what: str) -> ModelError:
    return ModelError(f"{place}: {what}", expected="the file as it was saved", remedy=FETCH_AGAIN)
