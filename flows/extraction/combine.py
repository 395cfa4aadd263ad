"""Which heads of a run can be joined to an ensemble: those that read one backbone pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flows.runtime.values import ALL
from heads.catalogue import get_head
from heads.ensemble import Ensemble
from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec


def members(
    heads: Mapping[str, tuple[ExtractorSpec, bool]], wanted: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the names of the members of an ensemble, and sentences on heads that are none.

    Parameters
    ----------
    heads
        Of the run: the extractor of each, and whether it reads images instead.
    wanted
        Names, or ``all``: those that can, of the extractor that most of them read.

    Raises
    ------
    ConfigError
        For names that are no heads of the run, or cannot be members; for fewer than two.
    """
    every = list(heads) if tuple(wanted) == (ALL,) else list(dict.fromkeys(wanted))
    if unknown := [name for name in every if name not in heads]:
        raise ConfigError(
            f"--combine {','.join(wanted)}: {', '.join(unknown)} is none of the run's heads",
            expected=f"some of {', '.join(heads)}, or {ALL}",
            remedy="name it in --heads, too",
        )
    why = {name: said for name in every if (said := _unfit(name, heads[name][1]))}
    specs = {name: heads[name][0] for name in every if name not in why}
    if specs:
        most = Counter(specs.values()).most_common(1)[0][0]
        for name, spec in specs.items():
            if spec != most:
                own, other = ("x".join(map(str, x.input_size)) for x in (spec, most))
                why[name] = f"sees images at {own} px, others at {other} (--size N is for all)"
    chosen = [name for name in every if name not in why]
    if len(chosen) < Ensemble.least or (why and tuple(wanted) != (ALL,)):
        reasons = "".join(f"; {name} {said}" for name, said in why.items())
        if not reasons and len(chosen) == 1:
            reasons = f": {chosen[0]} alone"
        raise ConfigError(
            f"--combine {','.join(wanted)}{reasons}",
            expected=f"{Ensemble.least} heads or more that read one backbone pass over single "
            f"images; this run has {', '.join(heads)}",
            remedy="--heads A,B --combine A,B",
        )
    return chosen, [f"{name} is no part of the ensemble: it {said}" for name, said in why.items()]


def _unfit(name: str, reads_images: bool) -> str:
    """Return why a head can be no member; empty where it can."""
    head = get_head(name)
    if head.pairs:
        return "reads pairs"
    if reads_images:
        return "learns its own encoder"
    return "gives probabilities, which have no scale to share" if head.labelled else ""
