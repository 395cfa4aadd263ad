"""What this machine, its home and its servers are like: findings, each with its remedy.

Nothing is made or changed. Whatever may wait for others has a limit of time.
"""

from __future__ import annotations

import math
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch

from features.backbones.weights import find_weights
from flows.extraction.backbone import BackboneRef
from flows.extraction.forecast import free_bytes
from flows.extraction.plan import configured, plan_extraction, plan_head
from flows.runtime.console import counted, duration, size
from flows.runtime.dask import check_device, cores, dask_client
from flows.runtime.home import prefect_is_configured
from flows.runtime.settings import chosen_heads
from flows.use import soundness
from headwater.errors import HeadwaterError
from headwater.version import __version__
from storage.registry.registry import Registry
from storage.store.engine import is_remote, list_sets
from storage.store.layout import DISK_DTYPE

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from flows.runtime.settings import Settings

State = Literal["ok", "note", "wrong"]
#: Seconds that a server has; each has its own patience below that.
PATIENCE = 40.0
#: Free bytes below which a run will hardly do, and below which it will not.
LITTLE_DISK, NO_DISK = 5 * 10**9, 5 * 10**8
LITTLE_MEMORY = 3 * 10**9
#: Images of the first run whose cost is told.
EXAMPLE = 1000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: in what state it is, and what to do about it."""

    topic: str
    state: State
    said: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def examine(settings: Settings, home: Home) -> Iterator[Finding]:
    """Yield what was found, one thing after the other; nothing is made or changed.

    A thing that cannot be looked at is a finding, too: none ends the examination.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("processor", _processor),
        ("devices", lambda: _devices(settings)),
        ("memory", _memory),
        ("disk", lambda: _disk(home)),
        ("home", lambda: _home(home)),
        ("models and stores", lambda: _sound(home)),
        ("weights", lambda: _weights(settings)),
        ("tracking", lambda: _tracking(home)),
        ("prefect", lambda: _prefect(home)),
        ("dask", lambda: _dask(settings)),
        ("store", lambda: _store(home)),
        ("first run", lambda: _first_run(settings)),
    ]
    for topic, check in checks:
        # Hashing the models of a large home takes its time and waits for nobody.
        yield from _within(topic, check, None if topic == "models and stores" else PATIENCE)


def _within(
    topic: str, check: Callable[[], Iterator[Finding]], patience: float | None
) -> list[Finding]:
    """Return what a check finds, or that it failed, or did not end in time."""
    found: list[Finding] = []

    def look() -> None:
        try:
            made = list(check())
        except HeadwaterError as error:
            said = error.culprit + (f"; expected {error.expected}" if error.expected else "")
            made = [Finding(topic, "wrong", said, error.remedy)]
        # Whatever a broken installation or a server that is none may raise is what is looked for.
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            made = [Finding(topic, "wrong", f"{type(error).__name__}: {first}")]
        found.extend(made)

    # A thread, since no timeout reaches into a resolver or a driver.
    asking = threading.Thread(target=look, daemon=True)
    asking.start()
    asking.join(patience)
    if asking.is_alive():
        remedy = "see to the server, or ask again when this machine is less busy"
        return [Finding(topic, "wrong", f"no answer within {patience:.0f} s", remedy)]
    return found


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    python = ".".join(map(str, sys.version_info[:3]))
    names = ("torch", "timm", "icechunk", "prefect", "mlflow", "distributed")
    said = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    yield Finding("versions", "ok", f"headwater {__version__}, Python {python}, {said}")
    try:
        wanted = metadata.requires("headwater") or []
    except metadata.PackageNotFoundError:
        return  # run from a folder
    for one in map(Requirement, wanted):
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            have = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            have = "not installed"
        if have == "not installed" or not one.specifier.contains(have, prereleases=True):
            remedy = f"pip install '{one.name}{one.specifier}', or `make setup` for the tested set"
            text = f"{one.name} is {have}; headwater needs {one.specifier}"
            yield Finding("versions", "wrong", text, remedy)


def _processor() -> Iterator[Finding]:
    limit = os.environ.get("OMP_NUM_THREADS")
    said = f"{counted(cores(), 'core')} for this process, torch {torch.get_num_threads()} threads"
    if limit and int(limit) < cores():
        remedy = "unset it: workers share the cores out themselves"
        yield Finding("processor", "note", f"{said} (OMP_NUM_THREADS={limit})", remedy)
        return
    yield Finding("processor", "ok", said)


def _devices(settings: Settings) -> Iterator[Finding]:
    check_device(settings.training.device, settings.dask.scheduler)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            said = f"cuda:{number} {about.name}, {size(about.total_memory)}"
            yield Finding("devices", "ok", f"{said}, CUDA {torch.version.cuda}")
    elif Path("/proc/driver/nvidia/version").exists():
        yield Finding(
            "devices",
            "wrong",
            f"there is an NVIDIA driver, and torch {torch.__version__} finds no GPU",
            "nvidia-smi says whether the driver works; a build of torch for its CUDA is needed",
        )
    else:
        yield Finding("devices", "ok", "no GPU: everything runs on the processor")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    said = f"{size(memory.available)} of {size(memory.total)} available"
    if memory.available < LITTLE_MEMORY:
        remedy = "fewer heads at a time: --workers 1; small heads take 1 to 3 GB, those of papers 6"
        yield Finding("memory", "note", said, remedy)
    else:
        yield Finding("memory", "ok", said)


def _disk(home: Home) -> Iterator[Finding]:
    for what, place in {"home": str(home.root), "store": home.store}.items():
        if (free := free_bytes(place)) is None or (what == "store" and not home.store_url):
            continue
        state: State = "wrong" if free < NO_DISK else "note" if free < LITTLE_DISK else "ok"
        remedy = "" if state == "ok" else "make room, or put it elsewhere (--home, --store)"
        yield Finding("disk", state, f"{size(free)} free for the {what}, {place}", remedy)


def _home(home: Home) -> Iterator[Finding]:
    root = home.root
    if not root.exists():
        parent = next(p for p in root.parents if p.exists())
        if not os.access(parent, os.W_OK):
            remedy = "give another folder with --home or HEADWATER_HOME"
            yield Finding("home", "wrong", f"{root} cannot be made in {parent}", remedy)
        else:
            yield Finding("home", "ok", f"{root} is made by the first run")
        return
    if not root.is_dir():
        yield Finding("home", "wrong", f"{root} is no folder", "give another one with --home")
        return
    if not os.access(root, os.W_OK):
        remedy = "looking at it works; to train, give one that this user may write to"
        yield Finding("home", "note", f"{root} cannot be written", remedy)
    about = root.stat()
    mode = stat.S_IMODE(about.st_mode)
    said = f"{root}, mode {mode:04o}, {counted(len(list_sets(home.store)), 'image set')}"
    if mode & 0o007:
        remedy = f"chmod -R o-rwx {root}; docs/security.md says how a group shares one"
        yield Finding("home", "note", f"{said}: every user of this machine may read it", remedy)
    else:
        yield Finding("home", "ok", said)


def _sound(home: Home) -> Iterator[Finding]:
    if not home.root.is_dir():
        return
    found = soundness.check(home)
    for one in found:
        state: State = "wrong" if one.broken else "note"
        yield Finding("models and stores", state, f"{one.what} {one.name}: {one.said}", one.remedy)
    if not found:
        yield Finding("models and stores", "ok", "all that the home refers to is there and whole")


def _weights(settings: Settings) -> Iterator[Finding]:
    name = settings.backbone.name
    path = find_weights(name, settings.backbone.weights)
    yield Finding("weights", "ok", f"{name}: {path}")


def _tracking(home: Home) -> Iterator[Finding]:
    registry = Registry(home.root, home.tracking_url)
    if not home.tracking_url and not registry.database.exists():
        yield Finding("tracking", "ok", "MLflow's database is made in the home by the first run")
        return
    sets = registry.experiments()  # asks as whoever the address names
    state: State = "ok" if registry.writable else "note"
    yield Finding("tracking", state, f"{registry.place}: {counted(len(sets), 'image set')}")


def _prefect(home: Home) -> Iterator[Finding]:
    if not prefect_is_configured():
        yield Finding("prefect", "ok", "a server is started for each run")
        return
    own = home.root / "prefect"
    if os.environ.get("PREFECT_HOME") == str(own) and not (own / "profiles.toml").exists():
        # Prefect makes its folder when it is imported, and nothing is to be made here.
        os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="headwater-doctor-")
    from flows.runtime.server import check_server  # late: Prefect takes seconds

    url = check_server()
    yield Finding("prefect", "ok", f"{url} answers" if url else "a server is started for each run")


def _dask(settings: Settings) -> Iterator[Finding]:
    scheduler = settings.dask.scheduler
    if scheduler is None:
        yield Finding("dask", "ok", "processes of this machine, for each run")
        return
    with dask_client(1, scheduler) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            remedy = f"dask worker {scheduler}"
            yield Finding("dask", "wrong", f"{scheduler} has no workers: a run would wait", remedy)
            return
        mine = __version__
        others = client.run(_version_here)
    wrong = {where: other for where, other in others.items() if other != mine}
    for where, other in wrong.items():
        remedy = "install the same version there, with the same constraints.txt"
        yield Finding("dask", "wrong", f"worker {where} has headwater {other}, not {mine}", remedy)
    if not wrong:
        yield Finding("dask", "ok", f"{scheduler}: {counted(len(workers), 'worker')}")


def _version_here() -> str:
    try:
        from headwater.version import __version__  # late: run by a worker that may lack it
    except ImportError:
        return "none"
    return str(__version__)


def _store(home: Home) -> Iterator[Finding]:
    if is_remote(home.store):
        sets = list_sets(home.store)
        yield Finding("store", "ok", f"{home.store} answers: {counted(len(sets), 'image set')}")


def _first_run(settings: Settings) -> Iterator[Finding]:
    """Measure the backbone on blank images: decoding and the trainings come on top."""
    backbone = BackboneRef.of(settings.backbone).load()
    wanted = settings.extraction
    heads = configured(settings)
    plans = [plan_head(name, *head, wanted, backbone, "float32") for name, head in heads.items()]
    seconds, row = 0.0, 0
    for one in plan_extraction(plans):
        height, width = one.spec.input_size
        blank = torch.zeros(backbone.batch_size((height, width)) * 4, 3, height, width)
        backbone.maps(blank, one.layers)  # warm
        began = time.perf_counter()
        backbone.maps(blank, one.layers)
        views = one.spec.views.count if one.spec.views else 1
        seconds += views * (time.perf_counter() - began) / len(blank)
        itemsize = DISK_DTYPE[one.spec.dtype].itemsize
        shapes = backbone.shapes(one.layers, one.spec.input_size)
        row += views * itemsize * sum(math.prod(shape) for shape in shapes.values())
    names = ", ".join(chosen_heads(settings, settings.pairs is not None))
    what = "tiles" if wanted.tile else "images"
    said = (
        f"{EXAMPLE:,} {what} with {names}: about {size(EXAMPLE * row)} of features, "
        f"{duration(EXAMPLE * seconds)} of {backbone.name} on {backbone.device} in float32"
    )
    remedy = "`headwater plan SET --images DIR` says it of a set, with the trainings"
    yield Finding("first run", "ok", said, remedy)
