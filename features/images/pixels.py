"""One file to pixels: decoding with limits, and one documented reading of every pixel format."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from features.images.depth import in_colour
from features.images.formats.jpeg import what_is_missing
from features.images.formats.tiff import Page
from headwater.errors import ImageError
from headwater.files import open_regular

#: Images with more pixels are refused before they are decoded (64 Mi pixels are 192 MiB of RGB).
PIXEL_LIMIT = 1 << 26
#: Files with more bytes are no single image.
BYTE_LIMIT = 1 << 31
#: Images with a shorter side are set aside: no backbone sees anything in them.
SMALLEST_SIDE = 8
#: What is taken for an image by its name; everything else in a folder is ignored and counted.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".pgm", ".ppm", ".pbm", ".pnm"}
)
# Only raster formats: Pillow would otherwise start external programs for some (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNM = re.compile(rb"P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
_CLEAR = "alpha is 0 everywhere; the colours are used as if there were none"


@dataclass(frozen=True)
class Decoded:
    """An image and what is to be known of how it was read.

    Parameters
    ----------
    pixels
        As of `read_image`.
    notes
        Sentences on what was left out or taken otherwise than the file says.
    lossy
        Whether it comes from a JPEG, which smears edges.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    lossy: bool = False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal: the identity of an image."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_image(path: Path) -> np.ndarray:
    """Decode an image file, at its depth.

    - 8 bits and fewer: RGB; grey and 1, 2 and 4 bits: the share of white in all three channels;
    - 16 bits, grey or RGB: the values as they are; of TIFFs of 10, 12 or 14 bits and PNMs of
      another maximum the same share of white, 65535;
    - signed and 32-bit counts, and floats (TIFF): the values as they are, as float32;
    - palette: its colours; CMYK (Adobe's inverted one too) and other colour spaces: Pillow's
      conversion to RGB, without profiles; colour profiles and gamma are not applied;
    - transparency, an index of a palette too: laid over black, so that what is invisible cannot
      matter; where alpha is 0 everywhere it is none (frame grabbers leave the fourth byte empty),
      and the colours are used;
    - EXIF orientation: applied;
    - several pages: the one with the most pixels; several frames (animations, MPO): the first.

    Parameters
    ----------
    path
        PNG, JPEG, BMP, TIFF, WebP or PNM file.

    Returns
    -------
    numpy.ndarray
        ``[H, W, 3]`` uint8; of more than 8 bits ``[H, W]`` or ``[H, W, 3]`` uint16 or float32,
        which `features.images.depth.levels` brings between black and white.

    Raises
    ------
    ImageError
        Not an image, truncated, a JPEG of which a part is missing, more than `PIXEL_LIMIT` pixels,
        a side under `SMALLEST_SIDE` pixels, channels that are neither grey nor colour.

    Examples
    --------
    >>> read_image(Path("leather/train/good/000.png")).shape
    (32, 40, 3)
    """
    return read_decoded(path).pixels


def read_decoded(path: Path, *, smallest: int = SMALLEST_SIDE) -> Decoded:
    """Decode as `read_image` does, and say what is to be known of it.

    `smallest` is the shortest side in pixels that is taken.
    """
    with _opened(path) as file:
        return look_at(file, str(path), smallest=smallest)


def write_image(pixels: np.ndarray, path: Path) -> Path:
    """Write ``[H, W, 3]`` or ``[H, W]`` in the format of the name; the folder is made.

    Depths that PNG or Pillow's PNG does not have (16-bit colour, float32) become a TIFF of the
    same name. Returns the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and pixels.ndim == 2):
        Image.fromarray(pixels).save(path)
        return path
    path = path.with_suffix(".tif")
    path.write_bytes(tiff_bytes(pixels))
    return path


def tiff_bytes(pixels: np.ndarray) -> bytes:
    """Return an image of any depth as an uncompressed TIFF file."""
    import tifffile  # late: few images need it

    file = io.BytesIO()
    photometric = "minisblack" if pixels.ndim == 2 else "rgb"
    tifffile.imwrite(file, np.ascontiguousarray(pixels), photometric=photometric, metadata=None)
    return file.getvalue()


def _opened(path: Path) -> io.BufferedReader:
    try:
        return open_regular(Path(path))
    except OSError as error:
        raise ImageError(
            f"{path}: {error.strerror or error}", expected="a readable file"
        ) from error


def decode_image(
    source: BinaryIO | bytes, name: str = "image", *, known_whole: bool = False
) -> np.ndarray:
    """Decode an open file or bytes as `read_image` does; `name` is what errors call it.

    `known_whole` leaves out the search for missing parts, of bytes that a scan has looked at.
    """
    return look_at(source, name, known_whole=known_whole).pixels


def look_at(
    source: BinaryIO | bytes, name: str, *, known_whole: bool = False, smallest: int = SMALLEST_SIDE
) -> Decoded:
    """Decode as `decode_image` does, and say what is to be known of it; see `read_decoded`."""
    decoded = _decode(source, name, known_whole)
    height, width = decoded.pixels.shape[:2]
    if min(width, height) < smallest:
        raise ImageError(
            f"{name}: {width}x{height} pixels", expected=f"at least {smallest} pixels a side"
        )
    return decoded


def _decode(source: BinaryIO | bytes, name: str, known_whole: bool) -> Decoded:
    with _told(name):
        data = source if isinstance(source, bytes) else source.read(BYTE_LIMIT + 1)
        if len(data) > BYTE_LIMIT:
            raise ImageError(f"{name}: more than {BYTE_LIMIT >> 30} GiB", expected="one image")
        if data.startswith(_TIFF):
            return _from_tiff(data, name)
        if (deep := _deep_pnm(data, name)) is not None:
            return Decoded(deep)
        image = _load(data, name)
        lossy = image.format in ("JPEG", "MPO")
        if lossy and not known_whole and (reason := what_is_missing(data)):
            raise ImageError(f"{name}: {reason}", expected="a whole JPEG", remedy="copy it again")
        if data.startswith(b"\x89PNG") and data[24] == 16 and data[25] in (2, 4, 6):
            # Pillow has no mode for more than 8 bits of colour.
            return _over_black(_deep_png(data), 2 if data[25] in (4, 6) else 0)
        frames = getattr(image, "n_frames", 1)
        said = (f"has {frames} frames; the first is used",) if frames > 1 and not lossy else ()
        pixels, notes = _from_pillow(image, name)
        return Decoded(pixels, (*said, *notes), lossy)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Tell whatever decoders raise as an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image", expected=", ".join(_FORMATS)) from error
    # Decoders raise whatever their format makes them raise.
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImageError(f"{name}: {first}", expected="a whole, readable image") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > PIXEL_LIMIT:
        raise ImageError(
            f"{name}: too many pixels",
            expected=f"at most {PIXEL_LIMIT / 1e6:.0f} million",
            remedy="cut it into tiles",
        )


def _load(data: bytes, name: str, page: int = 0) -> Image.Image:
    """Open, check the size from the header, decode, turn by EXIF."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if page:
            image.seek(page)
        _check_size(image.size, name)
        kind = image.format
        image.load()
    except Image.DecompressionBombError:
        _check_size((PIXEL_LIMIT, 2), name)
        raise
    ImageOps.exif_transpose(image, in_place=True)
    image.format = kind
    return image


def _from_tiff(data: bytes, name: str) -> Decoded:
    page = Page.largest(data)
    _check_size(page.size, name)
    said: tuple[str, ...] = ()
    if page.of > 1:
        width, height = page.size
        said = (f"has {page.of} pages; page {page.number + 1}, {width}x{height}, is used",)
    if page.plain:
        if page.channels > 4:
            raise ImageError(f"{name}: {page.channels} channels", expected="1, 3 or 4")
        image = _load(data, name, page.number)
        pixels, notes = _from_pillow(image, name)
        return Decoded(pixels, (*said, *notes), image.format == "JPEG")
    values, alpha = page.pixels(name)
    made = _over_black(values, alpha)
    return Decoded(made.pixels, (*said, *made.notes))


def _over_black(values: np.ndarray, alpha: int) -> Decoded:
    """Lay values with `alpha` (0 none, 1 multiplied already, 2 not) over black; native depth."""
    notes: tuple[str, ...] = ()
    if alpha:
        values, clear = values[..., :-1], values[..., -1:]
        if not clear.any():
            notes = (_CLEAR,)
        elif alpha == 2:
            white = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1.0
            values = (values.astype(np.float64) * clear / white + 0.5 * (white > 1)).astype(
                values.dtype
            )
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    return Decoded(_native(values), notes)


def _native(values: np.ndarray) -> np.ndarray:
    """Return ``[H, W]`` or ``[H, W, 3]`` as uint8 RGB, uint16 or float32.

    Raises `ValueError` where there is no finite value.
    """
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(in_colour(values))
    if values.dtype.kind in "ui" and values.dtype != np.uint16:
        counts = values.min() >= 0 and values.max() <= 65535
        return values.astype(np.uint16 if counts else np.float32)
    if values.dtype == np.uint16:
        return np.ascontiguousarray(values)
    made = values.astype(np.float32)
    if not np.isfinite(made).any():
        raise ValueError("no finite value")
    return np.ascontiguousarray(made)


def _deep_png(data: bytes) -> np.ndarray:
    """Decode a PNG of 16 bits: ``[H, W, C]`` uint16."""
    import torch  # late: few images need it
    from torchvision.io import ImageReadMode, decode_png  # late: see above

    bytes_ = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    values = decode_png(bytes_, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return values.permute(1, 2, 0).numpy()


def _deep_pnm(data: bytes, name: str) -> np.ndarray | None:
    """Decode a binary PGM or PPM of more than 8 bits, its maximum being white; None for others."""
    head = _PNM.match(data[:4096])
    if head is None or int(head[4]) < 256:
        return None
    width, height, most = (int(head[i]) for i in (2, 3, 4))
    _check_size((width, height), name)
    channels = 3 if head[1] == b"6" else 1
    values = np.frombuffer(data, ">u2", width * height * channels, head.end())
    # As Pillow does it, for grey ones.
    scaled = np.minimum(65535, np.rint(values / most * 65535)).astype(np.uint16)
    return scaled.reshape((height, width, 3) if channels == 3 else (height, width))


def from_pillow(image: Image.Image, name: str) -> np.ndarray:
    """Return an opened image's pixels as `read_image` does.

    Raises
    ------
    ImageError
        For pixels that are no image.
    """
    try:
        turned = ImageOps.exif_transpose(image)
        return _from_pillow(turned, name)[0]
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: {error}", expected="an image that can be converted") from error


def _from_pillow(image: Image.Image, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    mode = image.mode
    notes: tuple[str, ...] = ()
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(image)
        return _native(values.astype(values.dtype.newbyteorder("="))), ()
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (0, 0):
            image, notes = _without_alpha(image, rgba), (_CLEAR,)
        else:
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    if image.mode == "L":
        return in_colour(np.asarray(image)), notes
    return np.array(image if image.mode == "RGB" else image.convert("RGB")), notes


def _without_alpha(image: Image.Image, rgba: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):
        # Multiplied by 0, the colours are what is left of them in the bytes.
        bands = image.split()[:-1]
        return bands[0] if len(bands) == 1 else Image.merge("RGB", bands)
    return rgba.convert("RGB")


def read_colours(path: Path) -> np.ndarray:
    """Decode an image file to its colours and their opacity, ``[H, W, 4]`` uint8, as they stand.

    Raises
    ------
    ImageError
        The file cannot be read.
    """
    with _opened(path) as file, _told(str(path)):
        return np.asarray(_load(file.read(BYTE_LIMIT), str(path)).convert("RGBA"))
