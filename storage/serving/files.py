"""The three files of a model: written, checked, read. No pickles, no paths from outside."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from headwater.errors import ModelError
from headwater.spec import ExtractorSpec, LayerSpec
from headwater.version import __version__

if TYPE_CHECKING:
    from features.backbones.backbone import Backbone
    from heads.contract import Head
    from heads.judging.calibration import Calibration

FORMAT, FORMAT_VERSION = "headwater-model", 1
MANIFEST, HEAD_FILE, BACKBONE_FILE = "manifest.json", "head.safetensors", "backbone.safetensors"


def write_parts(
    folder: Path,
    head: Head,
    backbone: Backbone | None,
    spec: ExtractorSpec,
    layers: Sequence[LayerSpec],
    calibration: Calibration,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the three files of a model into `folder`; see `save_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = dataclasses.replace(spec, views=None)
    _save(folder / HEAD_FILE, head.state_dict())
    _save(folder / BACKBONE_FILE, backbone.export_state(tuple(layers)) if backbone else {})
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "headwater": __version__,
        "spec": plain.to_json(),
        "extractor_id": plain.extractor_id(tuple(layers)),
        "layers": [layer.name for layer in layers],
        "head": {
            "name": head.name,
            "config": dataclasses.asdict(head.config),
            "shapes": {k: list(v) for k, v in head.shapes.items()},
            "map_size": list(head.map_size),
        },
        "calibration": calibration.to_json(),
        "about": dict(about or {}),
        "sha256": {name: _hash(folder / name) for name in (HEAD_FILE, BACKBONE_FILE)},
    }
    # Not sorted: a head reads its layers in the order of its shapes.
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False))


def _save(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    # Cloned: safetensors refuses tensors that share memory, as views of one buffer do.
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder that holds a model's three files, and its manifest, both checked.

    Raises
    ------
    ModelError
        Where there is no model, its files were changed, or it is of a newer Headwater.
    """
    if (folder / "artifacts" / MANIFEST).is_file():
        folder = folder / "artifacts"
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no model", expected=f"{MANIFEST}, {HEAD_FILE}, {BACKBONE_FILE}"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", expected="JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{path} is no manifest of a model", expected=f'"format": "{FORMAT}"')
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {manifest.get('format_version')}",
            expected=f"version {FORMAT_VERSION}",
            remedy=f"open it with Headwater {manifest.get('headwater', '?')} or newer",
        )
    for name in (HEAD_FILE, BACKBONE_FILE):
        # A fixed name: a manifest cannot point out of its folder.
        if not (folder / name).is_file() or _hash(folder / name) != manifest["sha256"][name]:
            raise ModelError(
                f"{folder / name} is missing or was changed",
                expected="the file that was saved with the manifest",
                remedy="fetch the model again from the registry",
            )
    return folder, manifest
