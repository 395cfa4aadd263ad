"""Settings are made whole once, at the start: what was given, over what a set remembers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.runtime.settings import Settings
from headwater.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flows.runtime.home import Home

#: Settings that say where images are; a set's card remembers them.
FOLDERS = ("images", "normal", "defective", "masks", "pairs")


def resolve(settings: Settings, home: Home, *, images: bool = True) -> Settings:
    """Return the settings of a job made whole; the one given is left as it is.

    What was given stands; else what the set remembers from its last run; else the default.

    Parameters
    ----------
    settings
        From the command, the file and the environment; names the set.
    home
        Remembers the sets.
    images
        Whether the images must be at hand: their folders are looked up and checked. Without, only
        what is stored will be read.

    Raises
    ------
    ConfigError
        Where no set is named, or images and pairs were mixed up.
    DataError
        Where nothing says where the images are, or a folder is missing.
    """
    settings = settings.model_copy(deep=True)
    if images:
        resolve_images(settings, home)
        check_folders(settings)
        return settings
    card = home.card(require_set(settings))
    if card.get("root"):
        settings.pairs = Path(card["pairs"]) if card.get("pairs") else None
    as_before(settings, home)
    return settings


def resolve_images(settings: Settings, home: Home) -> Settings:
    """Take the folders and the backbone that a set was last run with, where none were given.

    Raises
    ------
    DataError
        Where nothing says where the images are.
    """
    image_set = require_set(settings)
    card = home.card(image_set)
    given = [k for k in ("images", "normal", "pairs") if getattr(settings, k) is not None]
    if not given:
        if not any(card.get(key) for key in ("images", "normal", "pairs")):
            raise DataError(
                f"nothing says where the images of {image_set!r} are",
                expected="--images DIR (MVTec layout), --normal DIR, or --pairs DIR",
                remedy=f"headwater run {image_set} --images DIR",
            )
        for key in FOLDERS:
            value = card.get(key)
            setattr(settings, key, Path(value) if value else None)
    elif len(given) > 1:
        said = " and ".join(f"--{key}" for key in given)
        raise ConfigError(said, expected="one of them, not both")
    was_pairs = bool(card.get("pairs"))
    if any(card.get(k) for k in FOLDERS) and was_pairs != (settings.pairs is not None):
        kind, other = ("pairs", "single images") if was_pairs else ("single images", "pairs")
        raise ConfigError(
            f"{image_set} is a set of {kind}, and {other} were given",
            expected=f"--pairs DIR for {image_set}" if was_pairs else "--images or --normal",
            remedy=f"give the {other} as a set of another name",
        )
    as_before(settings, home)
    return settings


#: Extraction settings that decide what a feature is, and that a set's card remembers.
IDENTITY = ("size", "crop", "dtype")


def as_before(settings: Settings, home: Home) -> None:
    """Take the backbone and the image size that a set was last run with, where none were given.

    Other settings than these do not change what a feature is, or are settled once a set anyway.
    """
    card = home.card(require_set(settings))
    if card.get("backbone") and settings.backbone == type(settings.backbone)():
        settings.backbone = type(settings.backbone).model_validate(card["backbone"])
    plain = type(settings.extraction)()
    kept = type(settings.extraction).model_validate(card.get("extraction", {}))
    for key in IDENTITY:
        if getattr(settings.extraction, key) == getattr(plain, key):
            setattr(settings.extraction, key, getattr(kept, key))


def reads_pairs(settings: Settings, home: Home) -> bool:
    """Return whether the set is one of pairs: as the settings say, or else as its card remembers.

    To be asked before `resolve_images`, which settles it.
    """
    if any(getattr(settings, k) is not None for k in ("images", "normal", "pairs")):
        return settings.pairs is not None
    return bool(home.card(require_set(settings)).get("pairs"))


def require_set(settings: Settings) -> str:
    """Return the image set's name; `ConfigError` where none was given."""
    if not settings.image_set:
        raise ConfigError("no image set named", expected="a name, as in `headwater run my-set`")
    return settings.image_set


def check_folders(settings: Settings) -> None:
    """Raise `DataError` for folders that are not there, before anything slow is begun."""
    for option in FOLDERS:
        path: Path | None = getattr(settings, option)
        if path is not None and not path.is_dir():
            raise DataError(
                f"--{option} {path}: no such folder",
                expected="an existing folder of images",
                remedy="check the path",
            )
    if settings.images is not None and not (settings.images / "train" / "good").is_dir():
        raise DataError(
            f"{settings.images}: no folder train/good",
            expected="MVTec layout: train/good/*, test/KIND/*, ground_truth/KIND/NAME_mask.png",
            remedy="for plain folders give --normal DIR [--defective DIR --masks DIR]",
        )


def remember(settings: Settings, home: Home, image_set: str, root: Path) -> None:
    """Remember a set's folders and backbone for the commands that follow."""
    given = settings.model_dump(include=set(FOLDERS))
    home.write_card(
        image_set,
        {
            **home.card(image_set),
            **{k: str(v.absolute()) if v else None for k, v in given.items()},
            "root": str(root),
            "backbone": settings.backbone.model_dump(mode="json"),
            "extraction": settings.extraction.model_dump(mode="json", include=set(IDENTITY)),
        },
    )
