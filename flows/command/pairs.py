"""`headwater pairs`: prepare sets of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command.options import command_group
from flows.runtime.console import err, out
from headwater.errors import ConfigError

commands = command_group("Prepare sets of pairs of images.")


@commands.callback()
def _root() -> None:
    pass


@commands.command()
def cut(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of labelled pairs.")],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="Folder to make: a set of pairs of its own.")
    ],
    size: Annotated[int, typer.Option(min=8, help="Side of the square crops, pixels.")],
    per_pair: Annotated[int, typer.Option(min=1, help="Crops of a training pair at most.")] = 4,
    margin: Annotated[int, typer.Option(min=0, help="Unchanged pixels around a crop.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the places of the crops.")] = 0,
) -> None:
    """Cut unchanged crops out of labelled training pairs, and test pairs into tiles of that size.

    What comes out teaches heads that learn from unchanged pairs alone, and tests at the same scale.
    """
    from features.images.crops import cut_normal_pairs, cut_tiles
    from features.images.pairs import scan_pairs

    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is there already", expected="a folder yet to be made")
    pairs = scan_pairs(source).pairs
    train = [p for p in pairs if p.split == "train"]
    crops = cut_normal_pairs(
        train, target / "train", size, per_pair=per_pair, margin=margin, seed=seed
    )
    test = [p for p in pairs if p.split == "test"]
    tiles, left = cut_tiles(test, target / "test", size)
    out.print(f"{len(crops)} unchanged crops of {len(train)} training pairs, {len(tiles)} tiles")
    if left:
        err.print(f"note: {left} test pair(s) with a border that no tile covers", markup=False)
    out.print(f"next: headwater run NAME --pairs {target} --heads pair_flow", markup=False)
