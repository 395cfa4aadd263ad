"""`headwater run`, `extract`, `train` and `predict`: the job and its parts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from flows.command.options import (
    SET_ASIDE,
    JsonOption,
    RehashOption,
    SetArgument,
    SnapshotOption,
    VersionOption,
    command_group,
    takes,
)
from flows.runtime.console import Reporter, out
from flows.runtime.given import Given
from headwater.errors import ConfigError
from headwater.text import shown

commands = command_group("The job.")


@commands.command(rich_help_panel="The job")
@takes("run")
def run(image_set: SetArgument, given: Given, rehash: RehashOption = False) -> None:
    """Extract what is missing, train the heads in parallel, evaluate and register them.

    What is done already is not done again: stored features and finished trainings are reused.
    """
    settings, home = given.open()
    from flows.command.report import show_run
    from flows.pipeline import run_pipeline

    with Reporter().live() as reporter:
        result = run_pipeline(settings, home, reporter, rehash=rehash)
    show_run(result, home)
    raise typer.Exit(result.status)


@commands.command(rich_help_panel="The job")
@takes("extract")
def extract(
    image_set: SetArgument, given: Given, rehash: RehashOption = False, json_: JsonOption = False
) -> None:
    """Bring the feature store up to date with the images, for the heads named; train nothing."""
    settings, home = given.open()
    from flows.command.report import show_extraction
    from flows.extraction.extract import extract_set

    with Reporter(quiet=json_).live() as reporter:
        report = extract_set(settings, home, reporter, rehash=rehash)
    show_extraction(report, as_json=json_)
    raise typer.Exit(SET_ASIDE if report.set_aside else 0)


@commands.command(rich_help_panel="The job")
@takes("train")
def train(
    image_set: SetArgument,
    given: Given,
    snapshot: SnapshotOption = None,
    known_by: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only images that had arrived by then (ISO 8601)."),
    ] = None,
) -> None:
    """Train heads from what is stored, without touching the images' features."""
    settings, home = given.open()
    from flows.command.report import show_run
    from flows.pipeline import train_pipeline

    with Reporter().live() as reporter:
        result = train_pipeline(settings, home, reporter, snapshot=snapshot, known_by=known_by)
    show_run(result, home)
    raise typer.Exit(result.status)


@commands.command(rich_help_panel="The job")
@takes("models")
def predict(
    image_set: Annotated[
        str | None, typer.Argument(metavar="SET", help="Name of the image set.")
    ] = None,
    *,
    given: Given,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGES", help="Images or folders of images.")
    ] = None,
    pair: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="CURRENT HISTORY",
            help="Two images, or two folders joined by name; for pair heads.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="Instead of SET: a bundle; needs no home."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help=r"Which head's model. \[default: the one in service]")
    ] = None,
    version: VersionOption = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help=r"Folder for heat maps. \[default: in home]")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Instead of the model's threshold.")
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(
            "--roi",
            help="Of a model of --roi beside: a mask for all images, or a folder of masks. "
            r"\[default: NAME_roi.png beside each]",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A table, a row an image, for spreadsheets; FILE-regions.csv has a row a region.",
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep what the model in service says, for `feedback`."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Score new images, or pairs, with a registered model: verdict, where it is, heat map.

    Regions are in pixels of the picture, x from the left and y from the top, the largest first.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"--threshold {threshold}", expected="a finite number")
    if model is not None:
        # There is no set to name: what stands first is an image, too.
        images = [*([Path(image_set)] if image_set else []), *(images or [])]
        given = replace(given, values={k: v for k, v in given.values.items() if k != "image_set"})
        if head or version:
            raise ConfigError("--model with --head or --version", expected="one of them")
    elif image_set is None:
        raise ConfigError("predict", expected="SET and images, or --model FILE and images")
    if bool(images) == bool(pair):
        raise ConfigError("predict", expected="images, or --pair CURRENT HISTORY")
    if keep and (model or pair or head or version or threshold is not None):
        raise ConfigError(
            "predict --keep with a model, a pair or a threshold of its own",
            expected="what the model in service says of single images",
        )
    settings, home = given.open(write=keep)
    from flows.command.report import show_predictions
    from flows.use.answers import write_tables
    from flows.use.predict import predict as score

    if keep:
        from flows.serving.version import keeper
    told = keeper(home, image_set or "", settings.keep) if keep else None
    with Reporter(quiet=json_).live() as reporter:
        rows = score(
            home,
            image_set or "",
            reporter,
            bundle=model,
            images=images or (),
            pair=pair,
            head=head,
            version=version,
            folder=out_dir,
            threshold=threshold,
            roi=roi,
            told=told,
        )
    tables = [] if csv is None else write_tables(rows, csv)
    if json_:
        out.print_json(data=rows)
    else:
        show_predictions(rows)
        for file in tables:
            out.print(f"table: {shown(file)}", markup=False)
    raise typer.Exit(SET_ASIDE if any(row["error"] for row in rows) else 0)
