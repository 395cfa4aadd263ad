"""Which backbones there are: whether weights are here, size, speed on this machine, heads."""

from __future__ import annotations

import difflib
import fnmatch
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from features.backbones.backbone import Backbone, load_backbone
from features.backbones.outline import outline
from features.backbones.packages import PACKAGED, packaged
from features.backbones.weights import Source, names_here, weights_here
from flows.extraction.plan import IMAGES, HeadPlan, plan_head
from flows.runtime.settings import ExtractionSettings
from heads.catalogue import all_heads, make_config
from headwater.errors import ConfigError, HeadwaterError, LayerError, WeightsError
from headwater.files import write_text
from headwater.spec import LayerSpec

if TYPE_CHECKING:
    from flows.runtime.home import Home

#: Listed without a word, besides those whose weights are here or in a package, and those that the
#: heads' papers take: one or two of each family that is much used.
COMMON = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "densenet169",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
)
#: Seconds that a measurement repeats for, at most, and its runs.
_SECONDS, _RUNS = 2.0, 5


@dataclass(frozen=True)
class Listed:
    """One backbone.

    Parameters
    ----------
    name
        timm's.
    weights
        ``given`` (--weights, HEADWATER_WEIGHTS), ``package`` (installed), ``cache`` (downloaded
        before), ``installable``, ``none`` (timm's download, or a file of one's own).
    file
        The weight file that would be taken; None where none is here.
    install
        The one command that installs weights; empty where there is none.
    note
        Why weights that are here cannot be taken.
    parameters, bytes
        Number of parameters of the whole net, and the size of the file, or of such a one in
        float32.
    size
        ``(height, width)`` in pixels that speed and heads are told for: the default, or the one
        next to it that the net takes.
    milliseconds
        An image, as extraction runs the whole net on this machine's processor in float32; None
        where it was not measured here.
    heads
        Those that can use it, at their defaults.
    refused
        Why the others cannot.
    """

    name: str
    weights: Source | Literal["installable", "none"]
    file: str | None
    install: str
    note: str
    parameters: int
    bytes: int
    size: tuple[int, int]
    milliseconds: float | None
    heads: tuple[str, ...]
    refused: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def matching(word: str | None, weights: Path | None = None) -> list[str]:
    """Return the names of timm's nets that have a word in them, those with weights here first.

    Parameters
    ----------
    word
        A part of the name in any case, or a pattern with ``*``. The tags of a net are listed too
        where the word names the net in full or reaches into a tag, as ``resnet50.a1``. None lists
        what is here, what a package has, and what is often used.
    weights
        File or folder given to look for weights in.

    Raises
    ------
    ConfigError
        Where no name has it.
    """
    import timm

    here = names_here(weights)
    if word is None:
        papers = [head.reference.backbone for head in all_heads().values() if head.reference]
        names = {*here, *PACKAGED, *COMMON, *(name for name in papers if name)}
    else:
        pattern = word.lower() if "*" in word else f"*{word.lower()}*"
        known = {*timm.list_models(), *here}
        if "." in word or timm.is_model(word.lower()):
            known |= set(timm.list_pretrained())
        names = {name for name in known if fnmatch.fnmatchcase(name.lower(), pattern)}
        if not names:
            near = difflib.get_close_matches(word.lower(), known, n=5, cutoff=0.5)
            raise ConfigError(
                f"no backbone of timm has {word!r} in its name"
                + (f"; near it: {', '.join(near)}" if near else ""),
                expected="a part of a name, as resnet or dinov2",
                remedy="headwater backbones lists those that are often used",
            )
    order = {name: 0 if name in here else 1 if packaged(name) else 2 for name in names}
    return sorted(names, key=lambda name: (order[name], name != (word or "").lower(), name))


def look_at(
    names: list[str],
    home: Home,
    weights: Path | None = None,
    *,
    measure: bool = False,
    told: Callable[[int, str], None] | None = None,
) -> Iterator[Listed]:
    """Yield what there is to say of backbones.

    Parameters
    ----------
    names
        timm's.
    home
        Keeps the speeds measured, by machine.
    weights
        File or folder given to look for weights in.
    measure
        Run those whose speed on this machine is not known; some seconds each.
    told
        Called before each with its number, from 0, and its name.
    """
    for number, name in enumerate(names):
        if told is not None:
            told(number, name)
        yield _listed(name, home, weights, measure)


def _listed(name: str, home: Home, weights: Path | None, measure: bool) -> Listed:
    here, note = None, ""
    try:
        here = weights_here(name, weights)
    except WeightsError as error:
        note = error.culprit
    package = packaged(name)
    seen = outline(name)
    usable, refused = _heads(seen.backbone, seen.size)
    return Listed(
        name,
        here[1] if here else "installable" if package else "none",
        str(here[0]) if here else None,
        package.command if package and not here else "",
        note,
        seen.parameters,
        here[0].stat().st_size if here else 4 * seen.parameters,
        seen.size,
        _speed(name, seen.size, home, measure and bool(seen.backbone.info.stages)),
        usable,
        refused,
    )


def _heads(net: Backbone, size: tuple[int, int]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the heads that can use a net at their defaults, and why the others cannot."""
    if not net.info.stages:
        why = f"{net.name} has no stage that gives one map; a head's nodes can name modules"
        return (), dict.fromkeys(all_heads(), why)
    usual = ExtractionSettings()
    height, width = size
    if size != (usual.default_size, usual.default_size):
        usual = ExtractionSettings(size=f"{height}x{width}")
    plans: list[HeadPlan] = []
    refused: dict[str, str] = {}
    for name in all_heads():
        try:
            plans.append(plan_head(name, "paper", make_config(name, {}), usual, net, "float32"))
        except HeadwaterError as error:
            refused[name] = error.culprit
    # What is read at one size is asked for at once, where it can be had at once.
    for at in {plan.spec.input_size for plan in plans if plan.spec.backbone != IMAGES}:
        here = [p for p in plans if p.spec.input_size == at and p.spec.backbone != IMAGES]
        if _gives(net, tuple({layer for p in here for layer in p.layers}), at):
            for plan in here:
                if why := _gives(net, plan.layers, at):
                    refused[plan.head] = why
    return tuple(p.head for p in plans if p.head not in refused), refused


def _gives(net: Backbone, layers: tuple[LayerSpec, ...], size: tuple[int, int]) -> str:
    """Return why a net does not give layers at a size; empty where it does."""
    try:
        net.shapes(layers, size)
    except (ConfigError, LayerError) as error:
        return error.culprit
    return ""


def _speed(name: str, size: tuple[int, int], home: Home, measure: bool) -> float | None:
    """Return the milliseconds an image that are known of this machine, measured where asked."""
    file = home.root / "speeds.json"
    known: dict[str, dict[str, float]] = {}
    if file.is_file():
        try:
            known = json.loads(file.read_text())
        except (OSError, ValueError):  # to be measured again, no more
            known = {}
    net = f"{name} {size[0]}x{size[1]}"
    found = known.get(_machine(), {}).get(net)
    if found is None and measure:
        found = _measured(name, size)
        known.setdefault(_machine(), {})[net] = found
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(known, indent=1, sort_keys=True))
    return found


def _measured(name: str, size: tuple[int, int]) -> float:
    """Run a net with random weights up to its last stage; return the milliseconds an image."""
    backbone = load_backbone(name, untrained_seed=0)
    last = (LayerSpec(backbone.info.stages[-1:]),)
    # As many batches as run beside each other.
    images = torch.rand(backbone.batch_size(size) * torch.get_num_threads(), 3, *size)
    backbone.maps(images, last)  # warm
    best, began = float("inf"), time.perf_counter()
    for _ in range(_RUNS):
        start = time.perf_counter()
        backbone.maps(images, last)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > _SECONDS:
            break
    return 1000 * best / len(images)


@cache
def _machine() -> str:
    """Return what a speed is known of: the processor, torch and its threads."""
    processor = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"
