"""All layouts, one entry each: how one is known, and who reads it."""

from __future__ import annotations

from pathlib import Path

from features.images.layouts.beside import fits_dagm, fits_kolektor, read_dagm, read_kolektor
from features.images.layouts.lists import fits_list, read_list
from features.images.layouts.lookout import fits_lookout, read_lookout
from features.images.layouts.plain import fits_normal, fits_two, read_normal, read_two
from features.images.layouts.reading import Layout
from features.images.layouts.split_folders import SplitFolders
from features.images.layouts.visa import fits_visa, read_visa
from headwater.errors import ConfigError, DataError

_MVTEC = SplitFolders()
_AD2 = SplitFolders(
    test="test_public",
    truth="test_public/ground_truth",
    unlabelled=("test_private", "test_private_mixed"),
)
_BTAD = SplitFolders(good=("ok", "normal"))

#: In the order in which they are tried; the first that fits is taken.
LAYOUTS = (
    Layout(
        "mvtec-ad-2",
        "train/good, validation/good, test_public/KIND, test_public/ground_truth/KIND",
        _AD2.fits,
        _AD2.read,
    ),
    Layout(
        "mvtec",
        "train/good, test/KIND, ground_truth/KIND/NAME_mask.png (MVTec AD), or a folder of masks "
        "NAME/ and validation/good (MVTec LOCO)",
        _MVTEC.fits,
        _MVTEC.read,
    ),
    Layout("btad", "train/ok, test/ok, test/ko, ground_truth/ko/NAME.png", _BTAD.fits, _BTAD.read),
    Layout(
        "visa",
        "Data/Images/Normal, Data/Images/Anomaly, Data/Masks/Anomaly; ../split_csv/1cls.csv",
        fits_visa,
        read_visa,
    ),
    Layout("dagm", "Train/NAME.PNG, Train/Label/NAME_label.PNG; Test alike", fits_dagm, read_dagm),
    Layout("good-bad", "a folder good, ok or normal and one bad, ng, …; masks", fits_two, read_two),
    Layout(
        "kolektor",
        "NAME.jpg and NAME_label.bmp (or _GT, _mask) side by side, with train and test or without",
        fits_kolektor,
        read_kolektor,
    ),
    Layout("normal", "a folder of normal images", fits_normal, read_normal),
    Layout(
        "lookout",
        "FILE.manifest: JSON lines of Amazon Lookout for Vision",
        fits_lookout,
        read_lookout,
    ),
    Layout(
        "list", "FILE.csv or FILE.parquet: path, label, mask, split, group", fits_list, read_list
    ),
)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}
#: What asks for the first that fits.
AUTO = "auto"


def find_layout(place: Path, name: str = AUTO) -> Layout:
    """Return the layout of a folder or of the file of a list; the one of this name, or that fits.

    Raises
    ------
    ConfigError
        For a name that is none.
    DataError
        Where nothing is there, the named one does not fit, or none does.

    Examples
    --------
    >>> find_layout(Path("leather")).name
    'mvtec'
    """
    if not place.exists():
        raise DataError(f"{place}: no such folder or file", expected="images, or a list of them")
    if name != AUTO:
        if name not in _BY_NAME:
            raise ConfigError(f"--layout {name}", expected=f"one of {', '.join((AUTO, *_BY_NAME))}")
        layout = _BY_NAME[name]
        if layout.fits(place) or (layout.name == "normal" and place.is_dir()):
            return layout
        raise DataError(f"{place} is not laid out as {name}", expected=layout.looks)
    try:
        for layout in LAYOUTS:
            if layout.fits(place):
                return layout
    except OSError as error:
        raise DataError(f"{place}: {error.strerror}", expected="a readable folder") from None
    raise _unknown(place)


def _unknown(place: Path) -> DataError:
    """Return what to say of a folder that is laid out in no known way."""
    if place.is_file():
        return DataError(
            f"{place}: no list of images",
            expected="a csv or parquet file, or a manifest of Amazon Lookout for Vision",
        )
    subs = sorted(p for p in place.iterdir() if p.is_dir() and p.name[0] != ".")
    sets = [p for p in subs if any(x.fits(p) for x in LAYOUTS if x.name not in ("normal",))]
    if sets:
        more = f" and {len(sets) - 1} more" if len(sets) > 1 else ""
        return DataError(
            f"{place}: {sets[0].name}/{more} below it are sets of their own",
            expected="one set at a time",
            remedy=f"--images {sets[0]}",
        )
    seen = ", ".join(f"{p.name}/" for p in subs[:6]) or "no folders"
    return DataError(
        f"{place}: no folder train/good, and no other layout that is known; it has {seen}",
        expected="train/good/*, test/KIND/*, ground_truth/KIND/NAME_mask.png, or one of the "
        "layouts of docs/images.md",
        remedy="for plain folders give --normal DIR [--defective DIR --masks DIR]; where all "
        "images are normal, --layout normal",
    )
