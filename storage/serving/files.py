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
    HEAD_FILE,
    MANIFEST,
    read_manifest,
    sealed,
)
from storage.serving.whole import check_hashes, manifest_bytes
from storage.serving.whole import model_folder as model_folder

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
    check_hashes(folder, manifest["sha256"])
    try:
        return manifest, load_file(folder / HEAD_FILE), load_file(folder / BACKBONE_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: {error}", expected="whole safetensors files") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(manifest_bytes(folder), str(folder / MANIFEST))
