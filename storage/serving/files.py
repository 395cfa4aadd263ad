"""The three files of a model: written, checked, read. No pickles, no paths from outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.images.pixels import sha256_of
from headwater.errors import ModelError
from storage.serving.manifest import (
    BACKBONE_FILE,
    FETCH_AGAIN,
    HEAD_FILE,
    MANIFEST,
    MOST,
    read_manifest,
    sealed,
)

State = Mapping[str, Tensor]


def write_files(folder: Path, about: Mapping[str, Any], head: State, backbone: State) -> None:
    """Write the three files of a model.

    Parameters
    ----------
    folder
        Made where it is not there.
    about
        JSON-ready; the manifest says it beside its format and the hashes of all three.
    head, backbone
        Tensors by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in ((HEAD_FILE, head), (BACKBONE_FILE, backbone)):
        # Cloned: safetensors refuses tensors that share memory, as views of one buffer do.
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
        save_file(plain, folder / name)
    hashes = {name: sha256_of(folder / name) for name in (HEAD_FILE, BACKBONE_FILE)}
    (folder / MANIFEST).write_text(sealed(about, hashes))


def read_files(folder: Path) -> tuple[dict[str, Any], State, State]:
    """Return a model's manifest, checked, and the tensors of its head and of its backbone.

    Parameters
    ----------
    folder
        With the three files, or an MLflow model's.

    Raises
    ------
    ModelError
        Where there is no model, its files were changed, or it is of a newer Headwater.
    """
    folder = model_folder(folder)
    manifest = _read_manifest(folder)
    for name in (HEAD_FILE, BACKBONE_FILE):
        # A fixed name: a manifest cannot point out of its folder.
        if not (folder / name).is_file() or sha256_of(folder / name) != manifest["sha256"][name]:
            raise ModelError(
                f"{folder / name} is missing or was changed",
                expected="the file that was saved with the manifest",
                remedy=FETCH_AGAIN,
            )
    try:
        return manifest, load_file(folder / HEAD_FILE), load_file(folder / BACKBONE_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: {error}", expected="whole safetensors files") from error


def model_folder(folder: Path) -> Path:
    """Return the folder of the three files: itself, or the one within an MLflow model's."""
    inner = folder / "artifacts"
    return inner if (inner / MANIFEST).is_file() else folder


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MOST + 1)
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no model", expected=f"{MANIFEST}, {HEAD_FILE}, {BACKBONE_FILE}"
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}", expected="a manifest") from error
    return read_manifest(data, str(path))
