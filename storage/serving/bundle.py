"""A model as one file: a zip that predicts wherever Headwater is installed, and needs nothing else.

Members, stored uncompressed: ``bundle.json`` (what it is, and the hash of every other member) and
the model's own three files, byte for byte. Nothing is unpacked to a disk and nothing unpickled:
members are read by their known names, so that no name in the file can lead anywhere.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from headwater.errors import ModelError
from headwater.files import replacing
from headwater.version import __version__
from storage.serving.files import State, model_folder, read_files
from storage.serving.manifest import BACKBONE_FILE, HEAD_FILE, MANIFEST, read_manifest

FORMAT, FORMAT_VERSION = "headwater-bundle", 1
INDEX = "bundle.json"
_MEMBERS = (MANIFEST, HEAD_FILE, BACKBONE_FILE)
#: Of the two JSON members: more is no manifest.
_MOST_JSON = 1 << 24


def write_bundle(folder: Path, target: Path, about: Mapping[str, Any]) -> None:
    """Write a model's folder as one file.

    The same model gives the same bytes.

    Parameters
    ----------
    folder
        With the three files, or an MLflow model's; they are checked first.
    target
        File to write; what is there is replaced when the new one is whole.
    about
        JSON-ready: ``model``, ``version`` and what else is to be told of it.

    Raises
    ------
    ModelError
        Where there is no model, or its files were changed.
    """
    read_files(folder)
    folder = model_folder(folder)
    hashes = {name: _sha256((folder / name).read_bytes()) for name in _MEMBERS}
    index = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "headwater": __version__,
        **about,
        "sha256": hashes,
    }
    with replacing(target) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as bundle:
        # A fixed time: zip's own would make two bundles of one model differ.
        bundle.writestr(zipfile.ZipInfo(INDEX), json.dumps(index, indent=2, allow_nan=False))
        for name in _MEMBERS:
            bundle.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())


def read_index(path: Path) -> dict[str, Any]:
    """Return what a bundle says of itself, checked; `ModelError` where it is none."""
    with _opened(path) as bundle:
        return _index(bundle, path)


def read_bundle(path: Path) -> tuple[dict[str, Any], State, State]:
    """Return a bundle's model as `storage.serving.files.read_files` returns a folder's.

    The manifest has the bundle's own under ``bundle``.

    Raises
    ------
    ModelError
        Where it is no bundle, damaged, changed, or of a newer Headwater.
    """
    with _opened(path) as bundle:
        index = _index(bundle, path)
        found = {name: _member(bundle, name, path) for name in _MEMBERS}
    for name, data in found.items():
        if _sha256(data) != index["sha256"].get(name):
            raise _changed(path, f"{name} was changed")
    try:
        manifest = read_manifest(found[MANIFEST], f"{path}: {MANIFEST}")
        head, backbone = load(found[HEAD_FILE]), load(found[BACKBONE_FILE])
    except SafetensorError as error:
        raise _changed(path, str(error).splitlines()[0]) from error
    told = manifest["sha256"]
    for name in (HEAD_FILE, BACKBONE_FILE):
        if told.get(name) != index["sha256"][name]:
            raise _changed(path, f"{name} is not the one of the manifest")
    return {**manifest, "bundle": index}, head, backbone


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} is no bundle: {getattr(error, 'strerror', None) or error}",
            expected="a file that `headwater bundle` wrote",
            remedy="headwater bundle SET.HEAD --out FILE writes one",
        ) from error


def _member(bundle: zipfile.ZipFile, name: str, path: Path, most: int | None = None) -> bytes:
    """Return a member; only what lies in the file as it is, once, is read: there are no bombs."""
    infos = [info for info in bundle.infolist() if info.filename == name]
    if len(infos) != 1:
        raise _changed(path, f"{len(infos)} members are called {name}")
    (info,) = infos
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _changed(path, f"{name} is compressed")
    if most is not None and info.file_size > most:
        raise _changed(path, f"{name} has {info.file_size:,} bytes")
    try:
        return bundle.read(info)
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise _changed(path, f"{name}: {error}") from error


def _index(bundle: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(_member(bundle, INDEX, path, _MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise _changed(path, f"{INDEX} is no JSON") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise _changed(path, f'{INDEX} has no "format": "{FORMAT}"')
    if index.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path} is a bundle of format version {index.get('format_version')}",
            expected=f"version {FORMAT_VERSION}",
            remedy=f"open it with Headwater {index.get('headwater', '?')} or newer",
        )
    if not isinstance(index.get("sha256"), dict):
        raise _changed(path, f"{INDEX} holds no hashes")
    return index


def _changed(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: {what}",
        expected="a bundle as `headwater bundle` wrote it",
        remedy="fetch it again, or write it anew",
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
