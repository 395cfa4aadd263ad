"""Weight files: found, read without running anything in them, named by their hash."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from features.backbones.network import check_name
from features.backbones.packages import PACKAGED, packaged, packaged_by_hash
from features.images.pixels import sha256_of
from headwater.errors import ConfigError, WeightsError
from headwater.files import expand_user

#: Seconds after which a weight hub that does not answer is given up.
HUB_PATIENCE = 5.0
#: Whence a file is: given by the user, of an installed package, or downloaded before.
Source = Literal["given", "package", "cache"]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_REMEDY = "give --weights FILE, or set HEADWATER_WEIGHTS to a file or a folder of files NAME.*"


def find_weights(name: str, explicit: Path | None = None) -> Path:
    """Return the weight file of a backbone.

    Looked for, in this order: `explicit`, ``HEADWATER_WEIGHTS``, the package that has them
    (`features.backbones.packages`), timm's own download. A folder (of the first two) is searched
    for a file named ``NAME.*``.

    Parameters
    ----------
    name
        timm model name.
    explicit
        File or folder, or None.

    Raises
    ------
    WeightsError
        None found, or several in a folder.
    ConfigError
        A name that timm does not know.
    """
    given = os.environ.get("HEADWATER_WEIGHTS")
    for place, source in _places(explicit):
        if found := _pick(name, place, source):
            return found
    package = packaged(name)
    if package and (found := package.find()):
        return found
    path, why = _from_hub(name)
    if path is not None:
        return path
    raise WeightsError(
        f"no weights for backbone {name}"
        + (f": none in HEADWATER_WEIGHTS ({given})" if given else ": HEADWATER_WEIGHTS is not set")
        + f"; {why}",
        expected=f"a file {name}.*.safetensors or .pth",
        remedy=f"{package.command}, or {_REMEDY}"
        if package
        else f"{_REMEDY}; or {_others()}; `headwater backbones` lists what is here",
    )


def weights_here(name: str, explicit: Path | None = None) -> tuple[Path, Source] | None:
    """Return the weight file that `find_weights` would take without a network, and whence.

    A file that was given counts for the backbone alone that its name begins with.

    Raises
    ------
    WeightsError
        As `find_weights` does of a place that is not there, or holds several.
    """
    for place, source in _places(explicit):
        if place.is_file() and not _is_for(name, place):
            continue
        if found := _pick(name, place, source):
            return found, "given"
    package = packaged(name)
    if package and (found := package.find()):
        return found, "package"
    cached = _cached(*hub) if (hub := _on_hub(name)) else None
    return (cached, "cache") if cached else None


def names_here(explicit: Path | None = None) -> list[str]:
    """Return the backbones that weight files are here for: given, installed, or in the hub's cache.

    Names as the files tell them, tags included; sorted, each once.
    """
    from huggingface_hub import constants

    found = {one.model for one in PACKAGED.values() if one.installed}
    for place, _ in _places(explicit):
        files = place.iterdir() if place.is_dir() else [place] if place.is_file() else ()
        found |= {n for p in files if p.suffix in _SUFFIXES and (n := _told(p))}
    # A cached repository is a folder named models--OWNER--NAME.
    for folder in Path(constants.HF_HUB_CACHE).glob("models--*--*"):
        name = folder.name.split("--", 2)[2]
        if _known(name) and (hub := _on_hub(name)) and _cached(*hub):
            found.add(name)
    return sorted(found)


def _places(explicit: Path | None) -> list[tuple[Path, str]]:
    """Return the files and folders that were given to look for weights in, and by what."""
    given = (explicit, "--weights"), (os.environ.get("HEADWATER_WEIGHTS"), "HEADWATER_WEIGHTS")
    return [(expand_user(place), source) for place, source in given if place]


def _is_for(name: str, path: Path) -> bool:
    return path.suffix in _SUFFIXES and (path.stem == name or path.name.startswith(name + "."))


def backbone_of(weights: Path | None = None) -> str | None:
    """Return the backbone that a weight file is for, where a file is given and no backbone named.

    A file of a package (`features.backbones.packages`) is known by its hash. The name of any other
    must begin with timm's name of the net, up to a dot: ``resnet18.safetensors`` and
    ``resnet18.our-own.pth`` are resnet18's; ``resnet50.a1_in1k.safetensors``, whose second part is
    a tag that timm knows of that net, is ``resnet50.a1_in1k``'s.

    Parameters
    ----------
    weights
        What was given; None looks at ``HEADWATER_WEIGHTS``.

    Returns
    -------
    str or None
        timm's name; None where nothing, or a folder, or what is not there is given.

    Raises
    ------
    ConfigError
        Where the file does not tell: nothing is guessed.
    """
    path = weights or expand_user(os.environ.get("HEADWATER_WEIGHTS") or ".")
    if not path.is_file():
        return None
    if told := _told(path):
        return told
    if known := packaged_by_hash(sha256_of(path)):
        return known.model
    raise ConfigError(
        f"{'--weights' if weights else 'HEADWATER_WEIGHTS'} {path}: no backbone is named, and the"
        " file's name does not begin with one",
        expected="a name as resnet18.safetensors or resnet18.our-own.pth",
        remedy="name the backbone that it is for: --backbone resnet18",
    )


def _told(path: Path) -> str | None:
    """Return the net that a file's name begins with."""
    import timm

    parts = path.name.removesuffix(path.suffix).split(".")
    if not timm.is_model(parts[0]):
        return None
    tagged = ".".join(parts[:2])
    return tagged if tagged in timm.list_pretrained(parts[0]) else parts[0]


def _others() -> str:
    """Say which backbones a package has weights of: those at hand, or what installs one."""
    here = [one.model for one in PACKAGED.values() if one.find()]
    if here:
        return f"--backbone {here[0]}, whose weights are installed"
    first = next(iter(PACKAGED.values()))
    return f"{first.command}, for --backbone {first.model}"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``safetensors`` file, or a ``torch.save`` file without unpickling objects.

    Tensors may lie under ``state_dict`` or ``model``, and all their names may begin with
    ``module.``.

    Raises
    ------
    WeightsError
        The file is missing, damaged, holds objects other than tensors, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist", remedy=_REMEDY)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            data: object = load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged files raise what their parser stumbles over.
    except Exception as error:
        raise WeightsError(
            # torch's own words would recommend unpickling whatever the file holds
            f"weight file {path} is neither safetensors nor a torch file of tensors alone",
            expected="safetensors, or a torch.save of tensors alone",
            remedy="download it again, or save its state_dict as safetensors",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    items = data.items() if isinstance(data, Mapping) else ()
    tensors = {str(k): v for k, v in items if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"weight file {path} holds no tensors", expected="a state_dict")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def _pick(name: str, path: Path, source: str) -> Path | None:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{source}: {path} does not exist", remedy=_REMEDY)
    found = sorted(p for p in path.iterdir() if _is_for(name, p))
    if len(found) > 1:
        raise WeightsError(
            f"{source}: {len(found)} files in {path} are for backbone {name}: "
            + ", ".join(p.name for p in found),
            expected="one",
            remedy="give one of them with --weights",
        )
    if not found and source == "--weights":
        others = sorted({n for p in path.iterdir() if p.suffix in _SUFFIXES and (n := _told(p))})
        raise WeightsError(
            f"{source}: no file in {path} is for backbone {name}",
            expected=f"{name}.*.safetensors or .pth",
            remedy=f"name one that it has files for: --backbone {' or '.join(others)}"
            if others
            else _REMEDY,
        )
    return found[0] if found else None


def _known(name: str) -> bool:
    """Whether timm has a net of this name, and of this tag where it has one."""
    try:
        check_name(name)
    except ConfigError:
        return False
    return True


def _on_hub(name: str) -> tuple[str, str] | None:
    """Return the repository and the file that timm would download for a model, or None."""
    import timm

    check_name(name)
    config = timm.models.get_pretrained_cfg(name)
    repo = getattr(config, "hf_hub_id", None)
    if config is None or not repo:
        return None
    repo = f"{repo}{config.architecture}.{config.tag}" if repo.endswith("/") else repo
    return repo, getattr(config, "hf_hub_filename", None) or "model.safetensors"


def _cached(repo: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file)
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(name: str) -> tuple[Path | None, str]:
    """Return timm's file for this model, or None and why not."""
    from huggingface_hub import constants, hf_hub_download

    hub = _on_hub(name)
    if hub is None:
        return None, f"timm has no download for {name}"
    if cached := _cached(*hub):
        return cached, ""
    if constants.HF_HUB_OFFLINE:
        return None, "the weight hub is switched off (HF_HUB_OFFLINE)"
    if not _answers(constants.ENDPOINT):
        return None, f"the weight hub {constants.ENDPOINT} does not answer"
    try:
        return Path(hf_hub_download(*hub, etag_timeout=HUB_PATIENCE)), ""
    # The hub's client has many errors; each only means that the weights are not to be had there.
    except Exception as error:
        return None, f"the weight hub refuses {hub[0]}: {str(error).splitlines()[0]}"


def _answers(url: str) -> bool:
    """Whether anything answers at a URL within `HUB_PATIENCE`; a dead resolver counts too."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=HUB_PATIENCE).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.set()

    # A thread, since no timeout reaches into the resolver.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE)
    return answered.is_set()
