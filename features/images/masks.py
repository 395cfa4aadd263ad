"""Ground truth as pictures: what is not black is what is to be found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.images.pixels import SUFFIXES, Decoded, read_decoded
from headwater.errors import ImageError

#: Share of in-between pixels in even areas from which on they are labels and no soft edge.
_EVEN = 0.1
#: Of the highest value: pieces of a mask with soft edges that reach less are none.
_FAINT = 0.125


@dataclass(frozen=True)
class Mask:
    """A mask as it was read.

    Parameters
    ----------
    marked
        ``[H, W]`` bool, at the file's size.
    soft
        Whether its edges are soft, and were cut at half.
    """

    marked: np.ndarray
    soft: bool = False

    @classmethod
    def of(cls, decoded: Decoded) -> Mask:
        """Return the mask that an image is; see `read_mask`."""
        pixels = np.nan_to_num(decoded.pixels)
        grey = pixels.max(axis=2) if pixels.ndim == 3 else pixels
        if decoded.lossy:
            return cls(grey > 127)
        if grey.dtype == np.uint8 and (pixels == grey[..., None]).all():
            return _cut_at_half(grey)
        return cls(grey != 0)


def look_at_mask(path: Path) -> Mask:
    """Read a mask, and say how; see `read_mask`."""
    if path.is_dir():
        return _joined(path)
    return Mask.of(read_decoded(path, smallest=1))


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a ground-truth mask: what is not black, and not transparent, is marked.

    Of a folder, what any of the masks directly in it marks.

    In lossless files every non-zero pixel counts, whatever its value (1, 255, a label's number),
    but for the soft edges of annotation tools: where a connected piece of a grey mask runs over
    more than two values up to 128 or more, without even areas in between, it is cut at half of
    its highest, and pieces under an eighth of the mask's highest are none. In JPEG files, which
    smear edges, pixels above half of the range count.

    Parameters
    ----------
    size
        ``(height, width)`` of its image; a mask of another size is scaled to it (`scaled`).

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
    marked = look_at_mask(path).marked
    return marked if size is None else scaled(marked, size)


def mask_files(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, in order of name: what `read_mask` joins."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
    )


def _joined(folder: Path) -> Mask:
    files = mask_files(folder)
    if not files:
        raise ImageError(f"{folder}: no masks", expected="image files")
    found = [look_at_mask(file) for file in files]
    for file, other in zip(files, found, strict=True):
        if other.marked.shape != found[0].marked.shape:
            raise ImageError(f"{file}: not of the size of {files[0]}", expected="one size")
    marked = np.logical_or.reduce([mask.marked for mask in found])
    return Mask(marked, any(mask.soft for mask in found))


def scaled(marked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a ``[H, W]`` bool mask to ``(height, width)``.

    A pixel is marked where at least half of it is covered, interpolated bilinearly; of a mark too
    small for that what is covered most, so that none is lost. A mask of this size is returned as it
    is.

    Examples
    --------
    >>> scaled(np.array([[True, False]]), (2, 4)).tolist()
    [[True, True, False, False], [True, True, False, False]]
    """
    if marked.shape == tuple(size):
        return marked
    import torch  # late: masks are mostly of their image's size
    import torch.nn.functional as F  # late: see above

    x = torch.from_numpy(np.ascontiguousarray(marked, np.float32))[None, None]
    cover = F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)[0, 0].numpy()
    made = cover >= 0.5 - 1e-6
    if marked.any():
        _keep_small(made, cover, marked)
    return made


def _keep_small(made: np.ndarray, cover: np.ndarray, marked: np.ndarray) -> None:
    """Mark in `made` what is covered most of each connected mark that has left nothing there."""
    from scipy import ndimage  # late: masks are mostly of their image's size

    rows, columns = np.nonzero(marked)
    pieces, number = ndimage.label(marked, np.ones((3, 3)))
    piece = pieces[rows, columns]
    rows = rows * made.shape[0] // marked.shape[0]
    columns = columns * made.shape[1] // marked.shape[1]
    left = np.bincount(piece, made[rows, columns], minlength=number + 1) > 0
    most = np.zeros(number + 1, cover.dtype)
    np.maximum.at(most, piece, cover[rows, columns])
    small = ~left[piece] & (cover[rows, columns] >= most[piece] - 1e-6)
    made[rows[small], columns[small]] = True


def same_view(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Return whether a mask's size is its image's, but for scale and a pixel of rounding."""
    if mask[0] == image[0] or mask[1] == image[1]:
        return mask == image
    return abs(mask[0] * image[1] - mask[1] * image[0]) <= max(image)


def _cut_at_half(grey: np.ndarray) -> Mask:
    """Return the mask of a ``[H, W]`` uint8 picture."""
    counts = np.bincount(grey.reshape(-1), minlength=256)
    marked = grey != 0
    if not counts[128:].any() or np.count_nonzero(counts[1:]) <= 2:
        return Mask(marked)
    from scipy import ndimage  # late: masks mostly have two values

    between = marked & (grey != grey.max())
    even = ndimage.maximum_filter(grey, 3) == ndimage.minimum_filter(grey, 3)
    if (even & between).sum() > _EVEN * between.sum():
        return Mask(marked)
    pieces, number = ndimage.label(marked, np.ones((3, 3)))
    index = np.arange(1, number + 1)
    highest = np.concatenate([[0], ndimage.maximum(grey, pieces, index)])
    codes = np.unique(pieces[marked].astype(np.int64) * 256 + grey[marked])
    values = np.bincount(codes // 256, minlength=number + 1)
    soft = (values > 2) & (highest >= 128)
    if not soft.any():
        return Mask(marked)
    # What rings around an edge that was scaled sharply is no defect of its own.
    limit = np.where(soft, highest / 2, max(1.0, grey.max() * _FAINT))
    return Mask(marked & (grey >= limit[pieces]), soft=True)
