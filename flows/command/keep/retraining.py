"""`headwater retrain` and `lock`: new images to a better model in service, and the test for it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from flows.command.keep.service import WhoOption
from flows.command.options import JsonOption, SetArgument, command_group, takes
from flows.runtime.console import Reporter, counted, err, out, table
from flows.runtime.given import Given
from headwater.text import shown

commands = command_group("Retraining.")


@commands.command(rich_help_panel="The job")
@takes("run", "retrain")
def retrain(
    image_set: SetArgument,
    given: Given,
    again: Annotated[
        bool, typer.Option("--again", help="Judge also what was judged or in service before.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Take in new images, train, and put the new model in service if it is no worse.

    New normals that the model in service finds odd wait in `headwater review SET`. Champion and
    challengers are judged on the same locked test. Without --heads the champion's head is trained,
    as it was. Status 3 where something waits for somebody to look.
    """
    settings, home = given.open()
    from flows.retraining.run import retrain as do

    with Reporter(quiet=json_).live() as reporter:
        done = do(settings, home, reporter, again=again)
    if json_:
        out.print_json(data=done.to_json())
        raise typer.Exit(done.status)
    guarded = done.guarded
    if guarded.new:
        held = f", {len(guarded.held)} of them held" if guarded.held else ""
        out.print(
            f"{image_set}: {counted(guarded.new, 'normal image')} that the model in service has "
            f"not learnt from; it calls {guarded.flagged} of them anomalous{held}",
            markup=False,
        )
    if guarded.batch:
        out.print(f"  all of them wait: {guarded.batch}", markup=False)
    for note in guarded.notes:
        out.print(f"  note: {note}", markup=False)
    if guarded.held:
        rows = [[shown(h["path"]), h["score"], h["p_value"], shown(h["why"])] for h in guarded.held]
        out.print(table(["image", "score", "p", "why it waits"], rows[:20]))
    if guarded.waiting:
        out.print(
            f"waiting for a review: {counted(len(guarded.waiting), 'image')} of {image_set}; "
            f"headwater review {image_set} --accept IMAGE, or --reject IMAGE",
            markup=False,
        )
    for head, how in done.trained.items():
        out.print(f"{head}: trained {how}", markup=False)
    for one in done.judged:
        verdict = "may go in service" if one.passed else "may not go in service"
        against = f" against {one.champion}" if one.champion else ""
        out.print(f"{one.head} v{one.version}{against}: {verdict}", markup=False)
        for check in one.checks:
            out.print(f"  {check}", markup=False)
    for head, why in done.failures:
        err.print(f"error: {head}: {escape(why)}")
    said = {
        "promoted": f"{done.champion} is in service now",
        "kept": f"{done.champion} stays in service",
        "held": f"{done.champion} stays in service: {done.why}",
        "nothing new": f"nothing new to judge (--again judges what was judged before); "
        f"{done.champion or 'nothing'} is in service",
    }
    out.print(f"{image_set}: {said[done.what]}", markup=False)
    raise typer.Exit(done.status)


@commands.command(rich_help_panel="The job")
@takes("store")
def lock(
    image_set: SetArgument,
    given: Given,
    who: WhoOption = "",
    json_: JsonOption = False,
) -> None:
    """Lock the test images that are there now: champion and challengers are judged on them.

    The first retraining locks them by itself. Test images that come later judge nothing until this
    is done again; then both models are judged anew.
    """
    _, home = given.open()
    from flows.retraining.locked import lock as renew

    now, before = renew(home, image_set, who)
    gone = set() if before is None else before.images.keys() - now.images.keys()
    new = now.images.keys() - (set() if before is None else before.images.keys())
    if json_:
        told = {"images": len(now.images), "kinds": now.kinds, "new": len(new), "gone": len(gone)}
        out.print_json(data={"image_set": image_set, "digest": now.digest, **told})
        return
    kinds = ", ".join(f"{count} {shown(kind)}" for kind, count in now.kinds.items())
    was = "" if before is None else f"; {len(new)} new, {len(gone)} gone since {before.when}"
    out.print(f"{image_set}: locked {len(now.images)} test images: {kinds}{was}", markup=False)
