"""What lies among images and is no product: thumbnails, system folders, annotation tools' files.

A line a habit; what is not known here by its exact name is an image. Names are compared without
their case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Folders that network drives, systems and picture programs make beside images.
_THUMBNAILS = frozenset(
    {
        "@eadir", "@synoeastream", ".@__thumb", ".thumbnails", ".thumb", ".picasaoriginals",
        "__macosx", ".appledouble", ".appledesktop", ".ds_store",
    }
)  # fmt: skip
_SYSTEM = frozenset(
    {
        "$recycle.bin", "recycler", "#recycle", "@recycle", "@recently-snapshot", "#snapshot",
        "~snapshot", ".snapshot", ".snapshots", ".zfs", "@tmp", "lost+found", "found.000",
        "system volume information", "network trash folder", "temporary items",
        ".ipynb_checkpoints", "__pycache__",
    }
)  # fmt: skip
_ANNOTATIONS = frozenset(
    {
        # CVAT's and labelme's exports in the layout of Pascal VOC.
        "segmentationclass", "segmentationclasspng", "segmentationclassnpy",
        "segmentationclassvisualization", "segmentationobject", "segmentationobjectpng",
        "segmentationobjectvisualization",
    }
)  # fmt: skip
#: Lightroom's and Capture One's previews end in these.
_CATALOGUES = (".lrdata", ".lrlibrary", ".lrcat-data", ".cocatalog", ".photoslibrary")
# SYNOPHOTO_THUMB_M.jpg; task-12-annotation-7-by-1-tag-scratch-0.png (Label Studio's brush labels).
_FILES = (
    (re.compile(r"SYNO(?:PHOTO|FILE|INDEX)_", re.IGNORECASE), "thumbnails"),
    (re.compile(r"task-\d+-annotation-\d+-by-", re.IGNORECASE), "annotation tools' files"),
)
#: What the patterns begin with: most names need not be looked at twice.
_FIRST = frozenset("sStT")
_MASK = re.compile(
    r"[-_. ](?:mask|masks|label|labels|gt|groundtruth|ground_truth|seg|segmentation|annotation)$",
    re.IGNORECASE,
)
#: Their last letters, likewise.
_LAST = frozenset("klsthgnKLSTHGN")


def junk_folder(name: str) -> str:
    """Return what a folder of this name is, in the plural, or nothing: it may hold images.

    >>> junk_folder("@eaDir"), junk_folder("scratch")
    ('thumbnails (@eaDir)', '')
    """
    low = name.lower()
    if low in _THUMBNAILS or low.startswith(".trash") or low.endswith(_CATALOGUES):
        return f"thumbnails ({name})" if not low.startswith(".trash") else f"deleted ({name})"
    if low in _SYSTEM:
        return f"of the system ({name})"
    return f"annotation tools' files ({name})" if low in _ANNOTATIONS else ""


def junk_file(name: str) -> str:
    """Return what a file of this name is, in the plural, or nothing: it may be an image."""
    if name[0] == ".":
        # ._000.png holds what macOS knows of 000.png and is as long as any thumbnail.
        return "hidden files"
    if name[0] not in _FIRST:
        return ""
    for pattern, what in _FILES:
        if pattern.match(name):
            return what
    return ""


def mask_stem(stem: str) -> str:
    """Return the name of the image that a file of this name would be the mask of, or nothing.

    >>> mask_stem("000_mask"), mask_stem("Part0_label"), mask_stem("10301_GT"), mask_stem("000")
    ('000', 'Part0', '10301', '')
    """
    if not stem or stem[-1] not in _LAST:
        return ""
    found = _MASK.search(stem)
    return stem[: found.start()] if found else ""


def masks_beside(names: Iterable[str]) -> dict[str, str]:
    """Return, of the image files of one folder, those that are masks of others: mask to image.

    Only where the image is there: a product may be called ``gas_mask.png``.

    >>> masks_beside(["Part0.jpg", "Part0_label.bmp", "gas_mask.png"])
    {'Part0_label.bmp': 'Part0.jpg'}
    """
    stems: dict[str, str] = {}
    named: list[tuple[str, str]] = []
    for name in names:
        stem = name[: name.rfind(".")]
        if base := mask_stem(stem):
            named.append((name, base))
        stems[stem] = name
    return {name: stems[base] for name, base in named if base in stems}
