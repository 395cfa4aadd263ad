"""Settings are made whole once, at the start: what was given, over what a set remembers.

What a set remembers are the values that its last extraction went by, given or not: the folders, the
backbone, size, crop and stored dtype. So another default in a later version extracts nothing anew.

A new set takes the default backbone where none is named, unless a weight file is given: then its
name tells the backbone, and one that does not is a mistake (`features.backbones.weights`).

Where no size was given, each head may have chosen its own, so none is remembered; what is, is the
size of that time for heads that choose none (`default_size`). A card without it was written when
that was 256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.images.layouts.catalogue import AUTO, find_layout
from flows.runtime.settings import Settings, changed, chosen_heads
from headwater.errors import ConfigError, DataError
from headwater.text import one_of

if TYPE_CHECKING:
    from flows.runtime.home import Home

#: One of these must say where the images are.
_SOURCES = ("images", "normal", "pairs")
#: Settings that say where images are.
FOLDERS = (*_SOURCES, "defective", "masks", "test_normal", "validation", "test_list", "list_root")
#: Settings that say how to read them; a set that remembers none was read by the defaults.
READING = ("layout", "links")
#: What may be a file: a list of images.
_FILES = ("images", "test_list")
#: The rest of what is kept, and what cards meant that lack it: the defaults before cards had it.
#: These never change, whatever the defaults become.
_BEFORE: dict[str, dict[str, Any]] = {
    "backbone": {"name": "resnet18", "weights": None, "options": {}},
    "extraction": {
        "size": None, "default_size": 256, "crop": None, "dtype": "float16", "resize": "squash",
        "roi": None, "range": "full", "tile": None, "overlap": None, "scale": "tiles",
    },
}  # fmt: skip


def resolve(settings: Settings, home: Home, *, images: bool = True) -> Settings:
    """Return the settings of a job made whole: given, or as the set remembers, or the default.

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
        Where no set is named, images and pairs were mixed up, or a weight file does not tell the
        backbone that is not named either.
    DataError
        Where nothing says where the images are, or a folder is missing.
    """
    card = home.card(require_set(settings))
    if images:
        given = settings
        settings = _with_folders(settings, card, home.named())
        _check_folders(settings, given)
    elif "root" in card:
        settings = changed(settings, {"pairs": Path(card["pairs"]) if card.get("pairs") else None})
    return _as_before(settings, card) if "root" in card else _named(settings)


def remember(
    settings: Settings,
    home: Home,
    image_set: str,
    root: Path,
    arithmetic: Mapping[str, str] | None = None,
) -> None:
    """Remember the values of an extraction's resolved settings for the commands that follow.

    Parameters
    ----------
    settings, home, image_set
        What, where, and of which set.
    root
        Folder that its paths are relative to.
    arithmetic
        The arithmetic of each backbone used, by `flows.extraction.backbone.arithmetic_key`.
    """
    card = {**home.card(image_set), "root": str(root)}
    if arithmetic:
        card["precision"] = {**card.get("precision", {}), **arithmetic}
    for folder in FOLDERS:
        path: Path | None = getattr(settings, folder)
        card[folder] = str(path.absolute()) if path else None
    card |= {key: getattr(settings, key) for key in READING}
    if settings.backbone.weights is not None:
        settings = changed(settings, {"backbone.weights": settings.backbone.weights.absolute()})
    values = settings.model_dump(mode="json")
    for section, keys in _BEFORE.items():
        card[section] = {key: values[section][key] for key in keys}
    # In the order asked for: the first answers where several could (`OpenHome.detector`).
    card["heads"] = list(chosen_heads(settings, settings.pairs is not None))
    home.write_card(image_set, card)


def require_set(settings: Settings) -> str:
    """Return the image set's name; `ConfigError` where none was given."""
    if not settings.image_set:
        raise ConfigError("no image set named", expected="a name, as in `headwater run my-set`")
    return settings.image_set


def tune_heads(settings: Settings, home: Home, values: Mapping[str, Any]) -> Settings:
    """Return settings with ``{"HEAD.KEY": value}`` set, of heads that will run.

    Raises
    ------
    ConfigError
        For a head that will not.
    """
    if not values:
        return settings
    found = any(getattr(settings, k) is not None for k in _SOURCES)
    pairs = settings.pairs if found else home.card(require_set(settings)).get("pairs")
    heads = chosen_heads(settings, bool(pairs))
    for key, value in values.items():
        head, dot, name = key.partition(".")
        if not dot or head not in heads:
            raise ConfigError(f"--set {key}", expected=f"HEAD.KEY with HEAD of {', '.join(heads)}")
        heads = {**heads, head: {**heads[head], name: value}}
    return changed(settings, {"heads": heads})


def _with_folders(settings: Settings, card: Mapping[str, Any], known: Sequence[str]) -> Settings:
    """Return settings with the folders of the set's last run, where none were given."""
    image_set = settings.image_set
    given = [k for k in _SOURCES if getattr(settings, k) is not None]
    if not given:
        if not any(card.get(k) for k in _SOURCES):
            raise DataError(
                f"nothing says where the images of {image_set!r} are",
                expected="--images DIR (MVTec layout), --normal DIR, or --pairs DIR",
                remedy=f"headwater run {image_set} --images DIR"
                + (
                    f"; the home has {one_of(known, str(image_set)).removeprefix('one of ')}"
                    if known
                    else ""
                ),
            )
        last: dict[str, Any] = {k: Path(card[k]) for k in FOLDERS if card.get(k)}
        last |= {k: card[k] for k in READING if card.get(k)}
        more = {k: v for k, v in last.items() if getattr(settings, k) is None}
        settings = changed(settings, more)
    elif len(given) > 1:
        options = " and ".join(f"--{key}" for key in given)
        raise ConfigError(options, expected="one of them, not both")
    was_pairs = bool(card.get("pairs"))
    if any(card.get(k) for k in FOLDERS) and was_pairs != (settings.pairs is not None):
        kind, other = ("pairs", "single images") if was_pairs else ("single images", "pairs")
        raise ConfigError(
            f"{image_set} is a set of {kind}, and {other} were given",
            expected=f"--pairs DIR for {image_set}" if was_pairs else "--images or --normal",
            remedy=f"give the {other} as a set of another name",
        )
    return settings


def _as_before(settings: Settings, card: Mapping[str, Any]) -> Settings:
    """Return settings with what the card says where nothing was given.

    Weights and options belong to a backbone: where another one is given, they are not taken.
    """
    data = settings.model_dump(exclude_unset=True)
    for section, before in _BEFORE.items():
        kept = {key: card.get(section, {}).get(key, value) for key, value in before.items()}
        given = data.get(section, {})
        if given.get("name", kept.get("name")) == kept.get("name"):
            data[section] = {**kept, **given}
    return Settings.model_validate(data)


def _named(settings: Settings) -> Settings:
    """Return settings with the backbone that a weight file is for, where none is named."""
    if "name" in settings.backbone.model_fields_set:
        return settings
    from features.backbones.weights import backbone_of  # late: torch and timm cost seconds

    name = backbone_of(settings.backbone.weights)
    return settings if name is None else changed(settings, {"backbone.name": name})


def _check_folders(settings: Settings, given: Settings) -> None:
    """Raise `DataError` for folders that are not there, before anything slow is begun.

    `given` are the settings without what the set remembers.
    """
    for option in FOLDERS:
        path: Path | None = getattr(settings, option)
        if path is None or path.is_dir() or (option in _FILES and path.is_file()):
            continue
        named = {"list_root": "root"}.get(option, option.replace("_", "-"))
        what = "no such folder or file" if option in _FILES else "no such folder"
        if getattr(given, option) is None:
            raise DataError(
                f"{path}, the folder of {settings.image_set}'s {option} when it was last "
                "extracted, is not there",
                expected=f"--{named} DIR with where it is now",
                remedy="give it: images are known by their contents, nothing is extracted anew",
            )
        place, remedy = given.place(option), "check the path"
        if path.parts[0] == "s3:":
            remedy = "copy it first, as with aws s3 cp; a list may name images on S3 itself"
        raise DataError(
            f"{place}: {option} = {path}: {what}" if place else f"--{named} {path}: {what}",
            expected="an existing folder of images",
            remedy=remedy,
        )
    if settings.images is not None:
        find_layout(settings.images, settings.layout or AUTO)
    elif settings.layout or settings.test_list or settings.list_root:
        alone = "layout" if settings.layout else "test-list" if settings.test_list else "root"
        raise ConfigError(f"--{alone}", expected="--images with it")
