"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.errors import ConfigError

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from flows.runtime.settings import Settings

#: Exit status of work that was done but for something set aside.
SET_ASIDE = 3

SetArgument = Annotated[str, typer.Argument(metavar="SET", help="Name of the image set.")]
HomeOption = Annotated[
    Path | None,
    typer.Option(help="Folder of all state. [default: HEADWATER_HOME or ./headwater-home]"),
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="Settings file. [default: ./headwater.yaml if there is one]")
]
StoreOption = Annotated[
    str | None,
    typer.Option(help="Store: a folder or s3://bucket/prefix. [default: in home]"),
]
TrackingOption = Annotated[
    str | None, typer.Option(help="MLflow tracking URI. [default: SQLite in home]")
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(help="Folder in MVTec layout: train/good, test/KIND, ground_truth/KIND."),
]
NormalOption = Annotated[Path | None, typer.Option(help="Plain folder of normal images.")]
DefectiveOption = Annotated[Path | None, typer.Option(help="Plain folder of defective images.")]
PairsOption = Annotated[
    Path | None,
    typer.Option(help="Folder of pairs: train|test / current, history, mask."),
]
MasksOption = Annotated[Path | None, typer.Option(help="Folder of NAME.png or NAME_mask.png.")]
BackboneOption = Annotated[str | None, typer.Option(help="timm model name. [default: resnet18]")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="Weight file or folder. [default: HEADWATER_WEIGHTS, then timm's download]"),
]
BackboneOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone-option",
        metavar="KEY=VALUE",
        help="For timm (pad_type=same), or stride_in_1x1=true, mean=0.5, std=0.5. Repeatable.",
    ),
]
HeadsOption = Annotated[
    str | None,
    typer.Option(help="Comma-separated heads. [default: patchcore,f2r,cs_flow]"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="HEAD.KEY=VALUE", help="A head's setting, e.g. f2r.alpha=0.8. Repeatable."
    ),
]
SizeOption = Annotated[
    int | None, typer.Option(min=16, help="Pixels a side. [default: 256 or the head's]")
]
CropOption = Annotated[int | None, typer.Option(min=16, help="Centre crop after the resize.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="Backbone arithmetic: auto, float32 or bfloat16.")
]
PresetOption = Annotated[
    str | None,
    typer.Option(help="auto, small (minutes on 2 cores) or paper (the papers' settings)."),
]
RehashOption = Annotated[
    bool, typer.Option("--rehash", help="Read every file, even those that look unchanged.")
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.")]
TargetOption = Annotated[
    float | None, typer.Option(help="False-positive rate of the threshold. [default: 0.05]")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Heads trained at a time. [default: one a core, or one a GPU]"),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
SchedulerOption = Annotated[str | None, typer.Option(help="Address of an existing Dask scheduler.")]
SeedOption = Annotated[int | None, typer.Option(help="Of weights, orders, splits. [default: 0]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
SnapshotOption = Annotated[
    str | None,
    typer.Option(help="Train on this snapshot or tag. [default: the newest]"),
]


def _value(text: str) -> Any:
    """Read an option's value as JSON where it is JSON, as text otherwise."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _assignments(items: list[str] | None, option: str) -> dict[str, Any]:
    pairs = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} {item!r}", expected="KEY=VALUE")
        pairs[key.strip()] = _value(value)
    return pairs


def settings_from(
    options: dict[str, Any], *, sides: bool = False, write: bool = True
) -> tuple[Settings, Home]:
    """Merge options over `headwater.yaml`; return the settings and the home folder, prepared.

    With `sides` the set may be one side of a set of pairs. Commands that only look pass
    ``write=False``: they work in a read-only home and make none.
    """
    from flows.runtime.home import Home
    from flows.runtime.settings import load_settings
    from storage.store.layout import check_set_name

    image_set = options.get("image_set")
    if image_set is not None:
        check_set_name(image_set, sides=sides)
    plain = {
        "home": "home",
        "store": "store",
        "tracking": "tracking",
        "image_set": "image_set",
        "images": "images",
        "normal": "normal",
        "defective": "defective",
        "masks": "masks",
        "pairs": "pairs",
        "backbone": "backbone.name",
        "weights": "backbone.weights",
        "size": "extraction.size",
        "crop": "extraction.crop",
        "precision": "extraction.precision",
        "preset": "training.preset",
        "epochs": "training.epochs",
        "seed": "training.seed",
        "workers": "training.workers",
        "device": "training.device",
        "target_fpr": "training.target_fpr",
        "scheduler": "dask.scheduler",
        "extract_workers": "extraction.workers",
    }
    overrides = {key: options.get(name) for name, key in plain.items()}
    if options.get("normal") is not None:
        overrides["images"] = None
    overrides = {k: v for k, v in overrides.items() if v is not None}
    if extra := _assignments(options.get("backbone_options"), "--backbone-option"):
        overrides["backbone.options"] = extra
    settings = load_settings(options.get("config"), overrides)
    if options.get("normal") is not None:
        settings.images = None
    elif options.get("images") is not None:
        settings.normal = settings.defective = settings.masks = None
    if options.get("pairs") is not None:
        given = [k for k in ("images", "normal") if options.get(k) is not None]
        if given:
            raise ConfigError(f"--pairs and --{given[0]}", expected="one of them, not both")
        settings.images = settings.normal = settings.defective = settings.masks = None
    elif options.get("images") is not None or options.get("normal") is not None:
        settings.pairs = None
    if (heads := options.get("heads")) is not None:
        names = [h.strip() for h in heads.split(",") if h.strip()]
        if not names:
            raise ConfigError(f"--heads {heads!r}", expected="one head or more, such as patchcore")
        settings.heads = {name: settings.heads.get(name, {}) for name in names}
    places = (settings.store, settings.tracking, settings.artifacts)
    home = Home.at(settings.home, *places, write=write)
    home.prepare_environment()
    for key, value in _assignments(options.get("settings"), "--set").items():
        head, dot, name = key.partition(".")
        chosen = settings.heads or _default_heads(settings, home)
        if not dot or head not in chosen:
            raise ConfigError(f"--set {key}", expected=f"HEAD.KEY with HEAD of {', '.join(chosen)}")
        settings.heads = {**chosen, head: {**chosen[head], name: value}}
    return settings, home


#: What typer raises for a command line it cannot read, wherever this version of it keeps the class.
UsageError: Any = typer.BadParameter.__base__


def explain_usage(error: Any) -> ConfigError | None:
    """Return a `UsageError` in the form of all errors; None where help was all there was to say."""
    from pydantic import ValidationError

    from flows.runtime.settings import expectation

    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    culprit, expected, cause = error.message.rstrip("."), "", error.__cause__
    commands = getattr(getattr(error.ctx, "command", None), "commands", None)
    if isinstance(cause, ValidationError):
        problem = cause.errors()[0]
        culprit = f"option {error.param.opts[0]} {problem['input']}"
        expected = expectation(problem["msg"])
    elif near := getattr(error, "possibilities", None):
        expected = f"perhaps {', '.join(sorted(near))}"
    elif commands:
        expected = f"one of {', '.join(sorted(commands))}"
    elif error.ctx:
        culprit = error.format_message().rstrip(".")
        expected = " ".join(error.ctx.get_usage().removeprefix("Usage: ").split())
    culprit = culprit[0].lower() + culprit[1:]
    command = error.ctx.command_path if error.ctx else "headwater"
    return ConfigError(culprit, expected=expected, remedy=f"{command} --help says what there is")


def _default_heads(settings: Settings, home: Home) -> dict[str, dict[str, Any]]:
    from flows.extraction.plan import default_heads
    from flows.runtime.resolve import reads_pairs

    return default_heads(reads_pairs(settings, home))
