"""A registered model as one file, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.use.models.choose import choose_model
from headwater.errors import ConfigError, ModelError
from storage.registry.registry import Registry
from storage.serving.bundle import read_bundle, write_bundle

if TYPE_CHECKING:
    from flows.runtime.home import Home


def model_parts(text: str) -> tuple[str, str | None, str | None]:
    """Return image set, head and version of ``SET.HEAD/3``, ``SET.HEAD@champion`` or ``SET``.

    Raises
    ------
    ConfigError
        For anything else.

    Examples
    --------
    >>> model_parts("bolts.patchcore@champion"), model_parts("models:/bolts.f2r/3")
    (('bolts', 'patchcore', 'champion'), ('bolts', 'f2r', '3'))
    """
    name = r"[A-Za-z0-9][\w-]*"
    found = re.fullmatch(rf"(?:models:/)?({name})(?:\.({name}))?(?:[/@]([\w.-]+))?", text)
    if found is None:
        raise ConfigError(
            f"model {text!r}", expected="SET.HEAD, SET.HEAD/VERSION or SET.HEAD@ALIAS"
        )
    return found[1], found[2], found[3]


def bundle(
    home: Home, model: str, target: Path | None = None, *, replace: bool = False
) -> dict[str, Any]:
    """Write a registered model as one file that predicts without a home; read it back as proof.

    Parameters
    ----------
    home
        Where the model is registered.
    model
        As `model_parts` takes it; without a head the one in service, or of the set's only head.
    target
        File to write; ``SET.HEAD-vN.zip`` here by default.
    replace
        Whether a file that is there may be replaced.

    Returns
    -------
    dict
        ``file, bytes, model, version, head, backbone, sha256`` (of the members).

    Raises
    ------
    ConfigError
        Where the file is there already, or cannot be written.
    ModelError
        Where there is no such model, or its files were changed.
    """
    image_set, head, version = model_parts(model)
    registry = Registry(home.root, home.tracking_url)
    row = choose_model(registry, image_set, head, version)
    target = target or Path(f"{row['model']}-v{row['version']}.zip")
    if target.is_dir() or (target.exists() and not replace):
        raise ConfigError(
            f"{target} is there already", expected="a new file", remedy="--force replaces a file"
        )
    told = ("model", "version", "head", "backbone", "weights", "snapshot", "created", "metrics")
    try:
        write_bundle(registry.download(row["uri"]), target, {key: row[key] for key in told})
    except OSError as error:
        raise ConfigError(
            f"{target}: {error.strerror}", expected="a file that can be written, with --out"
        ) from error
    try:
        manifest, _, _ = read_bundle(target)
    except ModelError:
        target.unlink(missing_ok=True)
        raise
    facts = {key: row[key] for key in ("model", "version", "head", "backbone")}
    hashes = manifest["bundle"]["sha256"]
    return {"file": str(target), "bytes": target.stat().st_size, **facts, "sha256": hashes}
