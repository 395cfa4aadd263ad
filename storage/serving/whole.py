"""The files of a model, and whether they are as they were saved: told without loading any.

Nothing here needs torch, so that who only looks is quick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.images.pixels import sha256_of
from headwater.errors import ModelError

MANIFEST, HEAD_FILE, BACKBONE_FILE = "manifest.json", "head.safetensors", "backbone.safetensors"
FETCH_AGAIN = "fetch the model again from the registry"
#: Bytes: more is no manifest.
MOST = 1 << 26


def model_folder(folder: Path) -> Path:
    """Return the folder of the three files: itself, or the one within an MLflow model's."""
    inner = folder / "artifacts"
    return inner if (inner / MANIFEST).is_file() else folder


def seal_of(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a manifest says, its own hash left out; in its order."""
    others = {k: v for k, v in manifest["sha256"].items() if k != MANIFEST}
    text = json.dumps({**manifest, "sha256": others}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_bytes(folder: Path) -> bytes:
    """Return the bytes of the manifest of a model's folder, of `MOST` at most one more.

    Raises
    ------
    ModelError
        Where there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            return file.read(MOST + 1)
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no model", expected=f"{MANIFEST}, {HEAD_FILE}, {BACKBONE_FILE}"
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}", expected="a manifest") from error


def check_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise `ModelError` where the weights beside a manifest are not those that it names."""
    for name in (HEAD_FILE, BACKBONE_FILE):
        # A fixed name: a manifest cannot point out of its folder.
        if not (folder / name).is_file() or sha256_of(folder / name) != hashes[name]:
            raise ModelError(
                f"{folder / name} is missing or was changed",
                expected="the file that was saved with the manifest",
                remedy=FETCH_AGAIN,
            )


def as_saved(folder: Path) -> dict[str, Any]:
    """Return what the manifest of a model's folder says, where no file was changed since.

    What it says is not looked at: `storage.serving.manifest.read_manifest` does that before
    anything is built by it.

    Raises
    ------
    ModelError
        Where a file is missing or was changed.
    """
    folder = model_folder(folder)
    changed = ModelError(
        f"{folder / MANIFEST} was changed",
        expected="the file as it was saved",
        remedy=FETCH_AGAIN,
    )
    try:
        manifest = json.loads(manifest_bytes(folder))
        own = manifest["sha256"].get(MANIFEST)
        if own is not None and own != seal_of(manifest):
            raise changed
        check_hashes(folder, manifest["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise changed from None
    return dict(manifest)
