"""A request's bytes to a picture that can be answered, within the limits; what is wrong, said."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from features.images.formats.names import suffix_of
from features.images.masks import Mask
from features.images.pixels import look_at
from features.images.places.regions import region_on
from flows.serving.version import Asked
from headwater.errors import ImageError
from headwater.text import shown
from storage.serving.encoding import decode_base64

#: What a body may call itself: curl calls every file a form.
_PLAIN = (
    "",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "binary/octet-stream",
)
#: A name is kept up to so many characters.
_NAME = 500
#: Of a body that is too large so much is read and thrown away, for its sender to hear why.
_DRAIN = 64_000_000


class Refused(Exception):  # noqa: N818  it is no fault: an answer with a status
    """A request that is not answered, with its status and why.

    Parameters
    ----------
    status
        Of HTTP.
    culprit, expected, remedy
        As of `headwater.errors.HeadwaterError`.
    headers
        Of the response.
    """

    def __init__(
        self,
        status: int,
        culprit: str,
        expected: str = "",
        remedy: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(culprit)
        self.status, self.headers = status, headers or {}
        self.culprit, self.expected, self.remedy = culprit, expected, remedy

    def to_json(self) -> dict[str, Any]:
        """Return why, JSON-ready and safe to show."""
        parts = {"culprit": self.culprit, "expected": self.expected, "remedy": self.remedy}
        return {"error": {name: shown(text) for name, text in parts.items() if text}}


def media_type(request: Request) -> str:
    """Return what the body calls itself, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def body_of(request: Request, most: int) -> bytes:
    """Return a request's body.

    Raises
    ------
    Refused
        413 where it has more than `most` bytes, 400 where it has none or breaks off.
    """
    declared = request.headers.get("content-length", "")
    wait = "100-continue" in request.headers.get("expect", "").lower()
    if declared.isdecimal() and int(declared) > most and wait:
        raise _too_large(most)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                parts.clear()
                if size > most + _DRAIN:
                    break
            else:
                parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "the request broke off", "a whole request") from None
    if size > most:
        raise _too_large(most)
    if not size:
        raise Refused(400, "an empty request", "an image file's bytes", "curl --data-binary @FILE")
    return b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(
        413,
        f"a request of more than {most / 1e6:g} MB",
        f"at most {most / 1e6:g} MB",
        "a smaller picture, or headwater serve with a larger serve.max_mb",
        {"connection": "close"},
    )


def parts_of(request: Request, body: bytes) -> tuple[bytes, bytes | None, str]:
    """Return the picture's bytes, those of its region of interest, and its name.

    The body is the picture, or JSON with ``image``, ``roi`` and ``name``, the files in base64.

    Raises
    ------
    Refused
        415 for another type of body, 400 for JSON that is not that.
    """
    kind, name = media_type(request), request.query_params.get("name", "")
    name = (name or request.headers.get("x-name", ""))[:_NAME]
    if kind in _PLAIN or kind.startswith("image/"):
        return body, None, name
    if kind != "application/json":
        raise Refused(
            415,
            f"a body of type {kind[:100]}",
            "an image file's bytes, as image/png or application/octet-stream, or application/json "
            'with {"image": BASE64, "roi": BASE64, "name": TEXT}',
            "curl --data-binary @FILE",
        )
    given = json_of(body)
    wrong = sorted(given.keys() - {"image", "roi", "name"})
    if wrong or not isinstance(given.get("image"), str):
        raise Refused(
            400,
            f"JSON with {', '.join(wrong)}"[:200] if wrong else "JSON without image",
            '{"image": BASE64, "roi": BASE64, "name": TEXT}, the last two where there are any',
        )
    roi = given.get("roi")
    content = decode_base64(given["image"], "image")
    name = str(given.get("name") or name)[:_NAME]
    return content, None if roi is None else decode_base64(roi, "roi"), name


def json_of(body: bytes) -> dict[str, Any]:
    """Return a body that is an object of JSON.

    Raises
    ------
    Refused
        400 where it is none.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        why = str(error)[:200] or type(error).__name__
        raise Refused(400, f"JSON that cannot be read: {why}", "an object of JSON") from None
    if not isinstance(given, dict):
        raise Refused(400, "JSON that is no object", "an object of JSON")
    return given


def asked_of(content: bytes, roi: bytes | None, name: str) -> Asked:
    """Return a picture, decoded as everywhere in Headwater.

    Raises
    ------
    Refused
        400 where the bytes are no image that can be read or more than may be, 422 where the region
        does not fit.
    """
    try:
        pixels = look_at(content, "the picture").pixels
        suffix = suffix_of(content)
    except ImageError as error:
        raise Refused(400, error.culprit, error.expected, error.remedy) from None
    region = None
    if roi is not None:
        try:
            mask = Mask.of(look_at(roi, "roi", smallest=1)).marked
            region = region_on(mask, pixels.shape[0], pixels.shape[1], "roi")
        except ImageError as error:
            raise Refused(422, error.culprit, error.expected, error.remedy) from None
    digest = hashlib.sha256(content).hexdigest()
    return Asked(content, digest, name, suffix, pixels, region)
