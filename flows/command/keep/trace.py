"""`headwater lineage` and `reproduce`: where a model comes from, and whether it comes out again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.command.keep.bundle import ModelArgument
from flows.command.options import SET_ASIDE, JsonOption, command_group, takes
from flows.runtime.console import Reporter, err, out, table
from flows.runtime.given import Given
from headwater.text import shown

commands = command_group("Where models come from.")
#: What a model did with an image, by what that was to it.
_DID = {
    "train": "learnt from it",
    "held out": "held it out",
    "test": "been tested on it",
    "validation": "had it among its known defects",
    "left out": "left it out",
}


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def lineage(
    model: ModelArgument,
    given: Given,
    every: Annotated[
        bool, typer.Option("--images", help="List every image: digest, path, split, label.")
    ] = False,
    has: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Was this image in training? Status 3 if not."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print where a model comes from: images, snapshot, extractor, settings, seed, code, parents.

    Images are known by the SHA-256 of their files' bytes, wherever the files are now; --has also
    finds the same pixels in another file. What the model learnt from is "train" (or "held out",
    where a share chose or set something); "test" images were only judged; "validation" ones are
    known defects, which may have chosen.
    """
    _, home = given.open(write=False)
    from flows.use.models.lineage import lineage as trace
    from flows.use.models.lineage import whether_in

    found = trace(home, model)
    if has is not None:
        answer = whether_in(home, found, has)
        if json_:
            out.print_json(data={"model": found["model"], "version": found["version"], **answer})
        else:
            _show_whether(found, answer)
        raise typer.Exit(0 if answer["learnt"] else SET_ASIDE)
    if json_:
        kept = found if every else {k: v for k, v in found.items() if k != "samples"}
        out.print_json(data=kept)
        return
    _show(found)
    if every:
        _show_images(found)


def _show(found: Mapping[str, Any]) -> None:
    """Print a lineage but for its images."""
    aliases = f" ({', '.join(found['aliases'])})" if found["aliases"] else ""
    before = (found["parents"]["before"] or {}).items()
    counts = ", ".join(f"{n} {role}" for role, n in found["images"].items())
    told = {
        "model": f"{found['model']} version {found['version']}{aliases}, {found['created']}",
        "run": found["run_id"],
        "images": f"{counts} (--images lists them)",
        **{f"data {k}".replace("_", " "): v for k, v in found["data"].items()},
        **{k.replace("_", " "): v for k, v in found["extractor"].items()},
        **{k.replace("_", " "): v for k, v in found["settings"].items()},
        "seed": found["seed"],
        "code": found["code"],
        "versions": ", ".join(f"{k} {v}" for k, v in found["versions"].items()),
        "known defects": _known(found["validation"]),
        "machine": ", ".join((found["machine"] or {}).values()),
        "before it": ", ".join(f"{alias} was version {version}" for alias, version in before),
        "reproduces": found["parents"]["reproduces"],
        "grown from": found["parents"].get("grown_from"),
        "joins": ", ".join(
            f"{one['model']} version {one['version']}"
            for one in found["parents"].get("members", ())
        ),
    }
    rows = [[k, shown(str(v))] for k, v in told.items() if v not in (None, "")]
    out.print(table(["", ""], rows, "where it comes from", whole=("",)))
    for note in found["notes"]:
        err.print(f"note: {note}", markup=False)


def _known(told: Mapping[str, Any] | None) -> str:
    """Return what known defects chose, in words."""
    if told is None:
        return ""
    chose = told["chose"]
    said = [f"score: {chose['score']['rule']}"] if "score" in chose else []
    if "threshold" in chose:
        said.append(f"the threshold by {chose['threshold']['by']} {chose['threshold']['wanted']}")
    kinds = ", ".join(f"{n} {kind}" for kind, n in told["kinds"].items())
    return f"{kinds} (digest {told['digest']}); chose {' and '.join(said) or 'nothing'}"


def _show_images(found: Mapping[str, Any]) -> None:
    """Print a line an image, for people and for `grep`."""
    for row in found["samples"]:
        digests = " ".join(v for k, v in row.items() if k.endswith("sha256"))
        name = shown(str(row.get("path", row.get("key"))))
        line = f"{digests}  {row['role']}  {row['split']}/{row['kind']}  {name}"
        out.print(line, markup=False, soft_wrap=True)


def _show_whether(found: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Print what an image file was to a model."""
    name = f"{found['model']} version {found['version']}"
    how = {"bytes": "", "pixels": " (the same pixels in another file)"}
    if not answer["rows"]:
        said = f"no: {name} has not seen a file of these bytes, nor of these pixels"
    else:
        parts = [
            f"{_DID[row['role']]}, as {row.get('path', row.get('key'))}{how[row['matched']]}"
            for row in answer["rows"]
        ]
        said = f"{'yes' if answer['learnt'] else 'no'}: {name} has {'; '.join(parts)}"
    out.print(shown(said), markup=False, soft_wrap=True)
    if not answer["learnt"] and answer["unknown"]:
        err.print(
            f"note: of {answer['unknown']} of its images this home knows the bytes and not the "
            "pixels: headwater extract with --rehash reads those that are there"
        )
    for note in found["notes"]:
        err.print(f"note: {note}", markup=False)


@commands.command(rich_help_panel="Look")
@takes("store", "models")
def reproduce(
    model: ModelArgument,
    given: Given,
    device: Annotated[
        str | None,
        typer.Option(help=r"auto, cpu, cuda or cuda:N. \[default: as then, if it is there]"),
    ] = None,
    register: Annotated[
        bool, typer.Option("--register", help="Keep the new model as a version, too.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Train a model again from its lineage and compare all scores; the old one stays as it is.

    Same snapshot, images, folds, settings and seed. On the machine, device and code of then every
    score must be the same; elsewhere they may differ by a hundredth of their spread. Status 3 where
    they differ by more.
    """
    _, home = given.open(write=register)
    from flows.use.models.reproduce import reproduce as train_again

    with Reporter(quiet=json_).live() as reporter:
        found = train_again(home, model, reporter, device=device, register=register)
    if json_:
        out.print_json(data=found.to_json())
        raise typer.Exit(0 if found.agree else SET_ASIDE)
    other = [what for what, same in found.same.items() if not same]
    how = "exactly the same" if found.difference == 0 else f"differ by up to {found.difference:.3g}"
    rows = [
        ["scores", f"{found.images} of test images, and those of normals: {how}"],
        ["spread of scores", f"{found.spread:.4g}"],
        ["threshold", " and ".join(f"{x:.6g}" for x in found.threshold)],
        ["verdicts", f"{found.verdicts} changed"],
        ["not as then", ", ".join(other)],
        ["registered as", found.made and f"version {found.made}"],
    ]
    title = f"{found.model} version {found.version}, trained again"
    out.print(table(["", ""], [row for row in rows if row[1]], title, whole=("",)))
    words = "they agree" if found.agree else "they do not agree"
    exact = "" if other else ": machine, device, libraries and code are the same"
    out.print(words + exact)
    raise typer.Exit(0 if found.agree else SET_ASIDE)
