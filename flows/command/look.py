"""`compare`, `heads`, `backbones`, `grid`, `review` and `ui`: what there is and how good it is."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.command.options import JsonOption, SetArgument, VersionOption, command_group, takes
from flows.command.pages.report import show_page
from flows.runtime.console import Reporter, err, out, table
from flows.runtime.given import Given
from flows.runtime.signals import was_asked
from headwater.errors import ConfigError, DataError, ModelError, StoreError
from headwater.text import shown

if TYPE_CHECKING:
    from flows.use.backbones import Listed

commands = command_group("Look.")


@commands.command(rich_help_panel="Look")
@takes("models")
def compare(
    given: Given,
    image_set: Annotated[
        str | None,
        typer.Argument(metavar="SET", help="Name of the image set; without it all sets."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODELS", help="Two of it, as patchcore@1 patchcore@2."),
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(
            metavar="MISS:FALSE_ALARM",
            help="Prices of a missed defect and of a false alarm: rank by what mistakes cost.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print how good a set's registered models are, how sure that is, and what differs.

    Intervals are of 95 %, over the test images drawn anew. "level" models differ from the best of
    their test images by no more than chance; models of other test images stand in a table of their
    own. Models that differ by their seed alone are told by mean and spread, too. Of two models
    named it prints what differs: data, settings, figures, images. Without a set: one table of all.
    """
    if image_set and set(image_set) & set("./@"):
        name, words = image_set.partition(".")[0], " ".join([image_set, *(models or [])])
        raise ConfigError(
            f"compare {words}: {image_set} is a model, no set",
            expected="the name of a set, then two of its models",
            remedy=f"headwater compare {name} patchcore@1 patchcore@2, or headwater compare {name}",
        )
    _, home = given.open(write=False)
    from flows.command.keep.comparing import show_every, show_models, show_two, told
    from flows.use.compare import compare_models, compare_two, ranked_apart
    from headwater.prices import Prices
    from storage.registry.registry import Registry

    prices = None if costs is None else Prices.of(costs)
    registry = Registry(home.root, home.tracking_url)
    if models and image_set:
        if len(models) != 2:
            raise ConfigError(
                f"compare {image_set} {' '.join(models)}: {len(models)} model"
                + "s" * (len(models) > 1),
                expected=f"two models of {image_set}, as patchcore@1 patchcore@2, or none for all",
                remedy=f"headwater lineage {image_set}.HEAD/VERSION tells of one",
            )
        found = compare_two(registry, image_set, *models)
        if json_:
            out.print_json(data=found)
        else:
            show_two(found)
        return
    names = [image_set] if image_set else list(registry.experiments())
    rows = {name: compare_models(registry, name, prices) for name in names}
    if json_:
        out.print_json(data=[told(row) for name in names for row in rows[name]])
        return
    if not any(rows.values()):
        if image_set:
            raise DataError(**registry.no_models(image_set))
        raise DataError(
            f"no models in {registry.place}",
            expected="at least one registered model",
            remedy="headwater run SET --images DIR",
        )
    if image_set is None:
        show_every(rows)
    else:
        show_models(image_set, ranked_apart(rows[image_set]))


@commands.command(rich_help_panel="Look")
def heads(json_: JsonOption = False) -> None:
    """List the heads: what each is, needs, and which settings it has."""
    from flows.command.heads import describe_heads, lines

    rows = describe_heads()
    if json_:
        out.print_json(data=rows, default=str)
        return
    for line in lines(rows):
        out.print(line, markup=False, style="" if not line.startswith(" ") else "dim")


@commands.command(rich_help_panel="Look")
@takes("backbones")
def backbones(
    word: Annotated[
        str | None,
        typer.Argument(metavar="[WORD]", help="Part of the name, as dinov2.", show_default=False),
    ] = None,
    *,
    given: Given,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the speeds not known here: seconds each.")
    ] = False,
    most: Annotated[int, typer.Option(min=1, help="List no more than so many.")] = 30,
    json_: JsonOption = False,
) -> None:
    """List backbones: are weights here, how large and fast are they, which heads can use them.

    Without a word: those whose weights are here or can be installed, and those often used.
    """
    settings, home = given.open(write=measure)
    from flows.command.report import backbones_table
    from flows.use.backbones import look_at, matching

    names = matching(word, settings.backbone.weights)
    shown, rows = names[:most], []
    with Reporter(quiet=json_).live() as reporter:
        tell = reporter.update
        for row in look_at(
            shown,
            home,
            settings.backbone.weights,
            measure=measure,
            told=lambda number, name: tell("looking", number, len(shown), name),
        ):
            rows.append(row)
    more = len(names) - len(shown)
    if json_:
        out.print_json(data={"backbones": [row.to_json() for row in rows], "more": more})
        return
    made, letters = backbones_table(rows)
    out.print(made)
    for line in ("", *letters, *_about(rows, more)):
        out.print(line, markup=False)


def _about(rows: list[Listed], more: int) -> Iterator[str]:
    """Yield what there is to say below a list of backbones."""
    if all(row.milliseconds is None for row in rows):
        yield "ms: an image on this machine; --measure finds it, some seconds each"
    for row in rows:
        if row.note:
            yield f"note: {row.name}: {row.note}"
        if not row.heads:
            yield f"no head can use {row.name}: {next(iter(row.refused.values()))}"
        if row.install:
            yield f"{row.name}: {row.install}"
    if any(row.weights == "none" for row in rows):
        yield "no weights: timm's download where there is a network, or --weights FILE"
    if more:
        yield f"and {more:,} more: a longer word, or --most {len(rows) + more}"


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def grid(
    image_set: SetArgument,
    given: Given,
    version: VersionOption = None,
    coreset: Annotated[
        Literal["once", "per_point"],
        typer.Option(help="once: the model's gallery; per_point: chosen anew, slow."),
    ] = "once",
    every: Annotated[
        int, typer.Option(min=1, max=6, help="Only every Nth value: 3 gives 25 points.")
    ] = 1,
    json_: JsonOption = False,
) -> None:
    """Score F²R at all 169 points of alpha and beta on the test images (an oracle).

    The model must have its net: train it with --set f2r.factorize=always.

    One MLflow run with the table, the two heat maps and the paper's correlations. The best points
    are chosen on the test labels: no model is changed. Broken off, the same command goes on.
    """
    _, home = given.open(write=False)
    from flows.use.grid import run_grid
    from heads.gallery.f2r_grid import VALUES

    points = tuple((a, b) for a in VALUES[::every] for b in VALUES[::every])
    with Reporter(quiet=json_).live() as reporter:
        got = run_grid(home, image_set, reporter, version=version, coreset=coreset, points=points)
    rows = got.rows()
    if json_:
        whole = {
            "chosen_on": got.result.chosen_on,
            "table": got.result.table,
            "points": rows,
            "correlations": got.correlations(),
            "run_id": got.run_id,
            "picture": str(got.picture),
            "notes": got.notes,
        }
        out.print_json(data=whole)
        return
    columns = list(dict.fromkeys(k for row in rows for k in row))
    out.print(table(columns, [[row.get(k) for k in columns] for row in rows], f"{image_set}: f2r"))
    found = [
        [metric, name, row["rho"], f"{row['p_value']:.0e}"]
        for metric, of in got.correlations().items()
        for name, row in of.items()
    ]
    out.print()
    out.print(table(["metric", "with", "Spearman (partial)", "p"], found))
    out.print(f"\nheat maps: {got.picture}", markup=False)
    if got.resumed:
        err.print(f"note: {got.resumed} points were there from a grid that was broken off")
    for note in got.notes:
        err.print(f"note: {note}", markup=False)


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def review(
    image_set: SetArgument,
    given: Given,
    head: Annotated[str | None, typer.Option(help="As this head sees them alone.")] = None,
    accept: Annotated[
        list[str] | None, typer.Option(metavar="IMAGE", help="It is normal. Repeatable.")
    ] = None,
    reject: Annotated[
        list[str] | None, typer.Option(metavar="IMAGE", help="It is none. Repeatable.")
    ] = None,
    accept_held: Annotated[
        bool, typer.Option("--accept-held", help="All that wait from a retraining are normal.")
    ] = False,
    who: Annotated[
        str | None, typer.Option("--by", metavar="NAME", help="Who says so. [default: you]")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Show so many.")] = 20,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Write a page with their heat maps, too."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List normal images that do not look normal, by their out-of-fold scores; settle them.

    First come pictures of service that would teach most (`headwater feedback` says what they are),
    then what a retraining or feedback holds: it trains when it is accepted. An accepted one counts
    for the thresholds however odd it is; of a rejected one nothing learns. Either holds from the
    next training on. An image is named by the end of its path or by its hash.
    """
    _, home = given.open(write=bool(accept or reject or accept_held))
    from flows.command.report import show_served
    from flows.extraction.samples import HELD
    from flows.serving.kept import Kept
    from flows.serving.teaching import most_teaching
    from flows.use.review import odd_normals, settle, worth_a_look

    served = []
    try:
        with Kept(home, image_set) as kept:
            served = most_teaching(kept)
    except StoreError as error:
        err.print(f"note: {error}", markup=False)
    try:
        rows, sheets = odd_normals(home, image_set, head)
    except ModelError:
        if not served:
            raise
        rows, sheets = [], []  # calibrated quick: there is something to be seen all the same
    if accept_held:
        waiting = [r["sha256"] for r in rows if r.get("said") == HELD]
        accept = [*(accept or ()), *waiting]
    if accept or reject:
        said = settle(home, image_set, rows, accept=accept or (), reject=reject or (), who=who)
        rows = [
            {**row, "why": "", **said[row["sha256"]]} if row["sha256"] in said else row
            for row in rows
        ]
    if page is not None:
        from flows.use.report.write import write_review

        with Reporter(quiet=json_).live() as reporter:
            page = write_review(home, image_set, reporter, page, head=head, served=served).file
    if json_:
        told = {"page": str(page)} if page is not None else {}
        out.print_json(data={"served": served, "normals": rows, "sheets": sheets, **told})
        return
    if served:
        show_served(image_set, served)
    worth = worth_a_look(rows)
    cells = [
        [
            r.get("path", r.get("key")),
            r["p_value"],
            "stands out" if r["stands_out"] else "",
            ", ".join(f"{name} {of['p_value']:.3f}" for name, of in r["heads"].items()),
            " ".join(r.get(k, "") for k in ("said", "who", "when")).strip()
            + (f": {shown(r['why'])}" if r.get("why") else ""),
        ]
        for r in worth[:most]
    ]
    columns = ["image", "lowest p", "", "by head", "review"]
    out.print(table(columns, cells, f"{image_set}: normals that look least normal"))
    if len(worth) > most:
        out.print(f"and {len(worth) - most} more: --most")
    for sheet in sheets:
        out.print(f"heat maps: {sheet}", markup=False)
    if page is not None:
        show_page(page)


@commands.command(rich_help_panel="Look")
@takes("models")
def ui(
    which: Annotated[
        str | None,
        typer.Argument(metavar="SET", help="Whose trainings to open.", show_default=False),
    ] = None,
    *,
    given: Given,
    port: Annotated[int, typer.Option(min=1, max=65535, help="To listen on.")] = 5000,
    browser: Annotated[
        bool, typer.Option(help="Open the page in a browser, where there is a desktop.")
    ] = True,
) -> None:
    """Open MLflow's pages on the results (on this machine only; Ctrl-C ends it)."""
    _, home = given.open(write=False)
    from headwater.listening import LOOPBACK, listen
    from storage.registry.pages import show_sets
    from storage.registry.registry import Registry
    from storage.registry.ui import serve, start_page

    registry = Registry(home.root, home.tracking_url)
    page = start_page(registry, which)

    def tell(root: str) -> None:
        out.print(f"MLflow UI: {root}/{page}", markup=False, soft_wrap=True)
        if browser and _has_desktop():
            # Beside: some browsers hold the one who calls until they are closed.
            call = threading.Thread(target=webbrowser.open, args=[f"{root}/{page}"], daemon=True)
            call.start()

    def renew() -> None:
        try:
            show_sets(registry)
        except StoreError as error:
            err.print(f"note: descriptions are not renewed: {error}", markup=False)

    def ready() -> None:
        tell(f"http://{LOOPBACK}:{port}")
        # Beside, as many sets take their time; what trainings wrote is there already.
        threading.Thread(target=renew, daemon=True).start()

    if registry.on_server:
        return tell(registry.uri.rstrip("/"))
    where = listen(port, command="headwater ui")
    try:
        serve(registry, where, ready)
    except KeyboardInterrupt:
        if was_asked():  # SIGTERM; Ctrl-C is how this command ends
            raise
    sys.stdout.flush()
    os._exit(0)  # nothing is left to be done, and Python's own end of so much takes seconds


def _has_desktop() -> bool:
    """Return whether a browser that is opened here is before the user's eyes."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    shown = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, shown))
