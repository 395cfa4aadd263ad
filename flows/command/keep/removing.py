"""`headwater remove`: images that are taken out of a set, and which models know them."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.command.keep.service import WhoOption
from flows.command.options import JsonOption, SetArgument, command_group, takes
from flows.runtime.console import counted, out
from flows.runtime.given import Given
from headwater.text import shown

commands = command_group("Images that are taken out.")


@commands.command(rich_help_panel="The job")
@takes("store", "models")
def remove(
    image_set: SetArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="The end of a path, or the beginning of a hash."),
    ],
    given: Given,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with it.")] = "",
    who: WhoOption = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take removed ones in again.")] = False,
    json_: JsonOption = False,
) -> None:
    """Take images out of a set: nothing learns from them or is tested by them any more.

    It is known by its bytes: its file may stay, and a copy of it is left out, too. Their rows leave
    the store at the next extraction, their features when that is collected. The models that learnt
    from them are named; `headwater retrain SET` makes one without them.
    """
    _, home = given.open()
    from flows.retraining.locked import locked_test
    from flows.use.models.lineage import learnt_from
    from flows.use.review import remove as take_out
    from flows.use.review import take_back

    if undo:
        rows = take_back(home, image_set, images)
    else:
        rows = take_out(home, image_set, images, why=why, who=who or None)
    shas = [row["sha256"] for row in rows]
    models, test = learnt_from(home, image_set, shas), locked_test(home, image_set)
    tested = 0 if test is None else len(test.images.keys() & set(shas))
    if json_:
        told = {"images": rows, "undone": undo, "models": models, "in_locked_test": tested}
        out.print_json(data={"image_set": image_set, **told})
        return
    for row in rows:
        out.print(f"  {shown(row['path'])}  {row['sha256'][:12]}", markup=False)
    count = counted(len(rows), "image")
    if undo:
        out.print(
            f"{image_set}: {count} taken in again; where the file is, the next run knows it",
            markup=False,
        )
        return
    out.print(f"{image_set}: {count} removed; nothing learns from that any more", markup=False)
    for one in models:
        name = f"{one['model']} version {one['version']}" + " (in service)" * one["in_service"]
        if one["known"]:
            out.print(f"  {name} learnt from {one['images']} of {len(rows)}", markup=False)
        else:
            out.print(f"  {name}: its run kept no list of images: it may have", markup=False)
    if not models:
        out.print("  no registered model learnt from it", markup=False)
    if tested:
        out.print(
            f"  {tested} of the locked test: headwater lock {image_set} renews it", markup=False
        )
    out.print(
        f"headwater retrain {image_set} makes a model without it and takes it out of the store; "
        f"then headwater store gc {image_set} --purge-removed --delete deletes its features "
        "(of images removed longer ago than --older-than)",
        markup=False,
    )
