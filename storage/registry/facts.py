"""What is written beside every result: versions, code, process, and the data set."""

from __future__ import annotations

import functools
import getpass
import json
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from mlflow.entities import Dataset

from headwater.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "FrEIA",
    "numpy",
    "zarr",
    "icechunk",
    "mlflow",
    "dask",
    "prefect",
)
#: MLflow cuts digests longer than this off with an error.
DIGEST_LENGTH = 36


@functools.cache
def versions() -> dict[str, str]:
    """Return tags ``version.PACKAGE`` of what decides a result, and of the code itself.

    ``code`` is the git commit (with ``+changes`` where the working tree differs from it), or the
    package's version where it is installed from a wheel.
    """
    tags = {"version.headwater": __version__}
    for name in _PACKAGES:
        try:
            tags[f"version.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).resolve().parents[2])
    if commit:
        tags["mlflow.source.git.commit"] = commit.split("+")[0]
    tags["code"] = commit or f"headwater {__version__}"
    return tags


def _commit(root: Path) -> str:
    if not (root / ".git").exists():
        return ""
    try:
        ask = functools.partial(
            subprocess.run, cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
        commit = ask(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = ask(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}+changes" if changed else commit


def process_tags() -> dict[str, str]:
    """Return tags that tell later whether the process that owns a run is still there."""
    process = psutil.Process()
    return {
        "headwater.host": socket.gethostname(),
        "headwater.pid": str(process.pid),
        "headwater.pid_started": f"{process.create_time():.2f}",
    }


def is_alive(tags: Mapping[str, str]) -> bool | None:
    """Return whether the process in `process_tags` runs; None where that cannot be known here."""
    if tags.get("headwater.host") != socket.gethostname():
        return None
    try:
        started = psutil.Process(int(tags["headwater.pid"])).create_time()
        # A process id is given away again: the start time tells the two apart.
        return abs(started - float(tags["headwater.pid_started"])) < 1.0
    except (psutil.Error, KeyError, ValueError):
        return False


def user() -> str:
    """Return the user's name, "unknown" where the system has none (a container, say)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


def image_set_dataset(
    image_set: str, store: str, tags: Mapping[str, str], images: Iterable[Any]
) -> Dataset:
    """Return an image set at a snapshot, as MLflow keeps and shows data sets.

    Parameters
    ----------
    image_set
        Name of the set.
    store
        Location of its feature store, folder or URL.
    tags
        Of the run: ``snapshot``, ``known_by`` where not all of it is used, and ``data_digest``, of
        the images and labels themselves: two snapshots of the same images have one.
    images
        What is used of it; the profile shows how many there are of each split and kind.
    """
    source = {"store": store, "snapshot": tags.get("snapshot", "")}
    if "known_by" in tags:
        source["known_by"] = tags["known_by"]
    return Dataset(
        name=image_set,
        digest=(tags.get("data_digest") or tags.get("snapshot", ""))[:DIGEST_LENGTH] or "none",
        source_type="headwater_store",
        source=json.dumps(source),
        profile=json.dumps(profile(images), sort_keys=True),
    )


def profile(images: Iterable[Any]) -> dict[str, int]:
    """Count images by split and kind; each has attributes or keys ``split`` and ``kind``.

    Examples
    --------
    >>> profile([{"split": "train", "kind": "good"}, {"split": "test", "kind": "crack"}])
    {'images': 2, 'test/crack': 1, 'train/good': 1}
    """

    def of(image: Any, name: str) -> str:
        return str(image[name] if isinstance(image, Mapping) else getattr(image, name))

    counts = Counter(f"{of(i, 'split')}/{of(i, 'kind')}" for i in images)
    return {"images": sum(counts.values()), **dict(sorted(counts.items()))}
