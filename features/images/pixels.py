"""One file to pixels: decoding with limits, and one documented reading of every pixel format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from headwater.errors import ImageError

#: Images with more pixels are refused before they are decoded (64 Mi pixels are 192 MiB of RGB).
PIXEL_LIMIT = 1 << 26
#: Images with a shorter side are set aside: no backbone sees anything in them.
SMALLEST_SIDE = 8
#: What is taken for an image by its name; everything else in a folder is ignored and counted.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm"}
)
# Only raster formats: Pillow would otherwise start external programs for some (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal: the identity of an image."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_image(path: Path) -> np.ndarray:
    """Decode an image file to 8-bit RGB.

    - grey and 1-bit: the value in all three channels;
    - 16-bit grey: ``round(v / 257)``, so that 0...65535 becomes 0...255; 16-bit RGB: the high byte;
    - palette: its colours; CMYK and other colour spaces: Pillow's conversion to RGB;
    - transparency: laid over black, so that what is invisible cannot matter;
    - EXIF orientation: applied; files of several frames: the first.

    Parameters
    ----------
    path
        PNG, JPEG, BMP, TIFF, WebP or PNM file.

    Returns
    -------
    numpy.ndarray
        ``[H, W, 3]`` uint8, contiguous.

    Raises
    ------
    ImageError
        Not an image, truncated, more than `PIXEL_LIMIT` pixels, a side under `SMALLEST_SIDE`
        pixels, or pixels that are neither 8- nor 16-bit.

    Examples
    --------
    >>> read_image(Path("leather/train/good/000.png")).shape
    (32, 40, 3)
    """
    with _opened(path) as file:
        return decode_image(file, str(path))


def write_image(pixels: np.ndarray, path: Path) -> None:
    """Write ``[H, W, 3]`` or ``[H, W]`` uint8 in the format of the name; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise ImageError(
            f"{path}: {error.strerror or error}", expected="a readable file"
        ) from error


def decode_image(source: BinaryIO | bytes, name: str = "image") -> np.ndarray:
    """Decode an open file or bytes as `read_image` does; `name` is what errors call it."""
    image = _load(source, name)
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(
            f"{name}: {width}x{height} pixels", expected=f"at least {SMALLEST_SIDE} pixels a side"
        )
    try:
        return to_rgb(image, name)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: {error}", expected="an image that can be converted") from error


def read_mask(path: Path) -> np.ndarray:
    """Read a ground-truth mask: what is not black is defective; of a folder, what any mask marks.

    In lossless files every non-zero pixel counts, whatever its value (1, 255, a label's number);
    in JPEG files, which smear edges, those above half of the range.

    Returns
    -------
    numpy.ndarray
        ``[H, W]`` bool.

    Raises
    ------
    ImageError
        The file cannot be read, or the masks of a folder are not of one size.

    Examples
    --------
    >>> int(read_mask(Path("leather/ground_truth/spot/000_mask.png")).sum())
    80
    """
    if path.is_dir():
        return _joined(path)
    with _opened(path) as file:
        image = _load(file, str(path))
    lossy = image.format in ("JPEG", "MPO")
    if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3:
        values = values.max(axis=2)
    return np.ascontiguousarray(values > 127 if lossy else values != 0)


def mask_files(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in order of name: what `read_mask` joins."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
    )


def _joined(folder: Path) -> np.ndarray:
    """Return what any of the masks directly in a folder marks."""
    files = mask_files(folder)
    if not files:
        raise ImageError(f"{folder}: no masks", expected="image files")
    marked = read_mask(files[0])
    for other in files[1:]:
        mask = read_mask(other)
        if mask.shape != marked.shape:
            raise ImageError(f"{other}: not of the size of {files[0]}", expected="one size")
        marked |= mask
    return marked


def read_colours(path: Path) -> np.ndarray:
    """Decode an image file to its colours and their opacity, ``[H, W, 4]`` uint8, as they stand.

    Raises
    ------
    ImageError
        The file cannot be read.
    """
    with _opened(path) as file:
        return np.asarray(_load(file, str(path)).convert("RGBA"))


def _load(source: BinaryIO | bytes, name: str) -> Image.Image:
    """Open, check the size from the header, decode, turn by EXIF."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        image: Image.Image = Image.open(file, formats=_FORMATS)
        width, height = image.size
        if width * height > PIXEL_LIMIT:
            raise Image.DecompressionBombError
        kind = image.format
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        image.format = kind
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: too many pixels",
            expected=f"at most {PIXEL_LIMIT / 1e6:.0f} million",
            remedy="cut it into tiles",
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image", expected=", ".join(_FORMATS)) from error
    # Pillow's decoders raise whatever their format makes them raise.
    except Exception as error:
        raise ImageError(f"{name}: {error}", expected="a whole, readable image") from error
    return image


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Return an opened image's pixels, ``[H, W, 3]`` uint8, as `read_image` describes them.

    Raises
    ------
    ImageError
        Pixels that are neither 8- nor 16-bit.
    """
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: 32-bit pixels", expected="8 or 16 bits a channel")
        return _grey_to_rgb(((values + 128) // 257).astype(np.uint8))
    if mode == "F":
        raise ImageError(f"{name}: floating-point pixels", expected="8 or 16 bits a channel")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    if image.mode == "L":
        return _grey_to_rgb(np.asarray(image))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    # A quarter faster than numpy's repeat.
    rgb = np.empty((*grey.shape, 3), np.uint8)
    for channel in range(3):
        rgb[..., channel] = grey
    return rgb
