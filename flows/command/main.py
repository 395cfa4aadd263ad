"""The `headwater` command. Heavy libraries are imported inside the commands, so that help is quick.

Exit status: 0 all went well, 1 a fault of Headwater's own, 2 a mistake that the message explains,
3 the work was done but something was set aside (a broken image, a damaged row), 130 Ctrl-C,
143 SIGTERM.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.command.options import (
    SET_ASIDE,
    BackboneOption,
    BackboneOptionsOption,
    ConfigOption,
    CropOption,
    DefectiveOption,
    DeviceOption,
    EpochsOption,
    HeadsOption,
    HomeOption,
    ImagesOption,
    JsonOption,
    MasksOption,
    NormalOption,
    PairsOption,
    PrecisionOption,
    PresetOption,
    RehashOption,
    SchedulerOption,
    SeedOption,
    SetArgument,
    SetOption,
    SizeOption,
    SnapshotOption,
    StoreOption,
    TargetOption,
    TrackingOption,
    UsageError,
    WeightsOption,
    WorkersOption,
    explain_usage,
    settings_from,
)
from flows.runtime.console import Reporter, err, out, table
from flows.runtime.signals import end_now, sigterm_interrupts, was_terminated
from headwater.errors import ConfigError, DataError, HeadwaterError
from headwater.spec import seed_of_untrained
from headwater.version import __version__

app = typer.Typer(
    name="headwater",
    help="Visual inspection from normal images: features once, many heads, traceable models.",
    epilog="Begin with `headwater demo`, then `headwater run my-set --images folder`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(rich_help_panel="The job")
def run(
    image_set: SetArgument,
    images: ImagesOption = None,
    normal: NormalOption = None,
    defective: DefectiveOption = None,
    masks: MasksOption = None,
    pairs: PairsOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    backbone_options: BackboneOptionsOption = None,
    heads: HeadsOption = None,
    settings: SetOption = None,
    size: SizeOption = None,
    crop: CropOption = None,
    precision: PrecisionOption = None,
    preset: PresetOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    target_fpr: TargetOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    scheduler: SchedulerOption = None,
    rehash: RehashOption = False,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    config: ConfigOption = None,
) -> None:
    """Extract what is missing, train the heads in parallel, evaluate and register them.

    What is done already is not done again: stored features and finished trainings are reused.
    """
    merged, place = settings_from(locals())
    from flows.command.report import show_run
    from flows.dags import run_pipeline

    with Reporter().live() as reporter:
        result = run_pipeline(merged, place, reporter, rehash=rehash)
    show_run(result, place)
    raise typer.Exit(result.status)


@app.command(rich_help_panel="The job")
def extract(
    image_set: SetArgument,
    images: ImagesOption = None,
    normal: NormalOption = None,
    defective: DefectiveOption = None,
    masks: MasksOption = None,
    pairs: PairsOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    backbone_options: BackboneOptionsOption = None,
    heads: HeadsOption = None,
    settings: SetOption = None,
    size: SizeOption = None,
    crop: CropOption = None,
    precision: PrecisionOption = None,
    preset: PresetOption = None,
    rehash: RehashOption = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Extract on an existing Dask cluster.")
    ] = None,
    extract_workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Extract in so many local processes.")
    ] = None,
    home: HomeOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Bring the feature store up to date with the images, for the heads named; train nothing."""
    merged, place = settings_from(locals())
    from flows.command.report import show_extraction
    from flows.extraction.extract import extract_set

    with Reporter(quiet=json_).live() as reporter:
        report = extract_set(merged, place, reporter, rehash=rehash)
    show_extraction(report, as_json=json_)
    raise typer.Exit(SET_ASIDE if report.set_aside else 0)


@app.command(rich_help_panel="The job")
def train(
    image_set: SetArgument,
    heads: HeadsOption = None,
    settings: SetOption = None,
    snapshot: SnapshotOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    backbone_options: BackboneOptionsOption = None,
    size: SizeOption = None,
    crop: CropOption = None,
    precision: PrecisionOption = None,
    preset: PresetOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    target_fpr: TargetOption = None,
    known_by: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only images that had arrived by then (ISO 8601)."),
    ] = None,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    scheduler: SchedulerOption = None,
    home: HomeOption = None,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    config: ConfigOption = None,
) -> None:
    """Train heads from what is stored, without touching the images' features."""
    merged, place = settings_from(locals())
    from flows.command.report import show_run
    from flows.dags import train_pipeline

    with Reporter().live() as reporter:
        result = train_pipeline(merged, place, reporter, snapshot=snapshot, known_by=known_by)
    show_run(result, place)
    raise typer.Exit(result.status)


@app.command(rich_help_panel="The job")
def predict(
    image_set: SetArgument,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images or folders of images.")
    ] = None,
    pair: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="CURRENT HISTORY",
            help="Two images, or two folders joined by name; for pair heads.",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Which head's model. [default: the set's only one]")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Model version or alias. [default: the newest]")
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder for heat maps. [default: in home]")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Instead of the model's threshold.")
    ] = None,
    home: HomeOption = None,
    tracking: TrackingOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Score new images, or pairs of them, with a registered model: verdict, heat map as PNG."""
    options = {k: v for k, v in locals().items() if k not in ("images", "pair")}
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"--threshold {threshold}", expected="a finite number")
    if bool(images) == bool(pair):
        raise ConfigError("predict", expected="images, or --pair CURRENT HISTORY")
    _, place = settings_from(options, write=False)
    from flows.use.predict import predict as score

    with Reporter(quiet=json_).live() as reporter:
        rows, broken = score(
            place,
            image_set,
            reporter,
            images=images or (),
            pair=pair,
            head=head,
            version=version,
            folder=out_dir,
            threshold=threshold,
        )
    if json_:
        failed = [{"image": str(b.path), "error": b.reason} for b in broken]
        out.print_json(json.dumps([*rows, *failed]))
    else:
        if rows:
            cells = [list(r.values()) for r in rows]
            out.print(table([c.replace("_", " ") for c in rows[0]], cells))
        for one in broken:
            err.print(f"set aside {one.path}: {one.reason}", markup=False)
    raise typer.Exit(SET_ASIDE if broken else 0)


@app.command(rich_help_panel="Look")
def compare(
    image_set: SetArgument,
    home: HomeOption = None,
    tracking: TrackingOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the leaderboard of a set's registered models, from MLflow."""
    _, place = settings_from(locals(), write=False)
    from flows.command.report import leaderboard_table
    from storage.registry.registry import Registry

    registry = Registry(place.root, place.tracking_url)
    rows = registry.leaderboard(image_set)
    if json_:
        out.print_json(json.dumps(rows))
        return
    if not rows:
        raise DataError(
            f"no models of image set {image_set!r} in {registry.place}",
            expected="at least one registered model",
            remedy=f"headwater run {image_set} --images DIR",
        )
    out.print(leaderboard_table(rows, f"{image_set}: registered models, best first"))
    if any(seed_of_untrained(row["weights"]) is not None for row in rows):
        err.print("note: models of the demo's untrained net are among these: illustrative only")


@app.command(rich_help_panel="Look")
def heads(json_: JsonOption = False) -> None:
    """List the heads: what each is, needs, and which settings it has."""
    from flows.command.report import show_heads

    show_heads(as_json=json_)


@app.command(rich_help_panel="Look")
def ui(
    home: HomeOption = None,
    tracking: TrackingOption = None,
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow UI on the results (on this machine only; Ctrl-C ends it)."""
    _, place = settings_from(locals())
    import os

    from storage.registry.registry import Registry

    command = Registry(place.root, place.tracking_url).ui_command(port)
    out.print(f"MLflow UI: http://127.0.0.1:{port}")
    os.execv(command[0], command)


@app.command(rich_help_panel="Begin")
def demo(
    images: ImagesOption = None,
    home: HomeOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Heads trained at a time.")] = None,
) -> None:
    """Run the whole job on pictures that come with scikit-image, or on a folder of your own.

    Where no backbone weights can be had, the demo (and only the demo) uses an untrained net.
    """
    from flows.command.demo import run_demo

    raise typer.Exit(run_demo(images, home, workers))


@app.command(rich_help_panel="Begin")
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("headwater.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a settings file with every key and a comment to each."""
    from flows.runtime.settings import TEMPLATE

    if path.exists() and not force:
        raise ConfigError(f"{path} is there already", remedy="--force overwrites it")
    try:
        path.write_text(TEMPLATE)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", expected="a file that can be written"
        ) from None
    out.print(f"wrote {path}: edit it, then `headwater run my-product`")


def _version(value: bool) -> None:
    if value:
        out.print(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors that a user can cure are printed without a traceback.

    Those that typer finds in the command line are printed as all others are.
    """
    from flows.command.grid import grid
    from flows.command.pairs import pairs_app
    from flows.command.store import store_app

    app.command(rich_help_panel="Look")(grid)
    app.add_typer(store_app, name="store", rich_help_panel="Look")
    app.add_typer(pairs_app, name="pairs", rich_help_panel="Begin")
    try:
        with sigterm_interrupts():
            status = app(standalone_mode=False)
    except UsageError as error:
        if (mistake := explain_usage(error)) is not None:
            err.print(f"error: {mistake}", markup=False)
        sys.exit(2)
    except HeadwaterError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 0
    except Exception:
        if not was_terminated():  # else: what was told to end with us is missed on the way out
            raise
        status = 130
    if status == 130:  # typer answers Ctrl-C itself, without a word
        err.print("stopped; what was committed is kept, the same command goes on from there")
        if was_terminated():
            end_now()
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
