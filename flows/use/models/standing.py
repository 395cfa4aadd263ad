"""What the figures of models mean to who has to choose: costs, kinds, seeds, and false friends."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from heads.judging.kinds import by_kind
from heads.judging.resampling import Resamples
from headwater.prices import Prices

#: Parameters of a run that say where and how fast, not what.
NO_MATTER = ("threads", "device")
#: Without draws of the test set, a recall lower by so much is not put down to chance.
LOWER = 0.1


def cost_of(
    table: Sequence[Mapping[str, Any]] | None, draws: Resamples | None, prices: Prices
) -> dict[str, Any] | None:
    """Return what a model's mistakes on its test images cost.

    Parameters
    ----------
    table
        Its tested samples: ``kind`` and ``correct`` of each.
    draws
        Its figures over draws of them.
    prices
        Of a mistake.

    Returns
    -------
    dict or None
        ``misses``, ``false_alarms``, ``an_image`` (the cost divided by the images) and its
        95 % ``interval``, None without draws. None where it is not known what is correct.
    """
    known = [row for row in table or () if row["correct"] is not None]
    if not known:
        return None
    bad = sum(row["kind"] != "good" for row in known)
    wrong = [row for row in known if not row["correct"]]
    misses = sum(row["kind"] != "good" for row in wrong)
    alarms, good = len(wrong) - misses, len(known) - bad
    interval = None
    figures = {} if draws is None else draws.figures
    # Figures of pairs are of pixels: they say nothing of whole pairs.
    if "accuracy" in figures:
        lost = bad * (1 - figures["recall"]) if bad else 0.0
        rung = good * figures["false_positive_rate"] if good else 0.0
        costs = np.asarray((prices.miss * lost + prices.false_alarm * rung) / len(known))
        interval = tuple(np.quantile(costs, [0.025, 0.975]).tolist())
    cost = prices.cost(misses, alarms, len(known))
    return {"misses": misses, "false_alarms": alarms, "an_image": cost, "interval": interval}


def kinds_of(
    table: Sequence[Mapping[str, Any]] | None,
) -> dict[str, dict[str, float]]:
    """Return a model's figures by kind of defect, from its tested images; of pairs none.

    At the threshold as the verdicts have it.
    """
    if not table or "sha256" not in table[0]:
        return {}
    kinds = [row["kind"] for row in table]
    found = by_kind([row["score"] for row in table], kinds, np.inf)
    for kind, of in found.items():
        right = [row["correct"] for row in table if row["kind"] == kind]
        of["image_recall"] = sum(right) / len(right)
        own = [row.get("pixel_aupimo") for row in table if row["kind"] == kind]
        if known := [value for value in own if value is not None]:
            of["pixel_aupimo"] = statistics.fmean(known)
    return found


def weaker(ranked: Sequence[Mapping[str, Any]], draws: Sequence[Resamples | None]) -> list[str]:
    """Return sentences on models that rank above others by image AUROC, yet find fewer defects.

    AUROC is of all thresholds; a defect is found, or not, at the one that the model has. Said of
    the best and of versions of one head, where it is no chance.

    Parameters
    ----------
    ranked
        Rows of one test set, best first.
    draws
        Of each row.
    """
    said = []
    for i, above in enumerate(ranked):
        worst: tuple[float, str] | None = None
        for j in range(i + 1, len(ranked)):
            below = ranked[j]
            if i and above["head"] != below["head"]:
                continue
            values = [
                row["metrics"].get(k) for k in ("image_auroc", "recall") for row in (above, below)
            ]
            if None in values or values[0] <= values[1]:
                continue
            gap = values[3] - values[2]
            pair = draws[i], draws[j]
            sure = None
            if pair[0] is not None and pair[1] is not None:
                sure = pair[1].difference(pair[0], "recall")
            if gap <= 0 or (sure[0] <= 0 if sure else gap < LOWER):
                continue
            alarms = [row["metrics"].get("false_positive_rate") for row in (above, below)]
            text = (
                f"{called(above)} is above {called(below)} by image AUROC ({values[0]:.3f}, "
                f"{values[1]:.3f}), yet finds fewer defects at its threshold: image recall "
                f"{values[2]:.3f}, not {values[3]:.3f}"
            )
            if None not in alarms:
                text += f" (false alarms {alarms[0]:.3f}, not {alarms[1]:.3f})"
            if worst is None or gap > worst[0]:
                worst = gap, text
        said += [] if worst is None else [worst[1]]
    return said


#: What sets a threshold, in words.
_SET_BY = {
    "folds": "out-of-fold scores of all normals",
    "quick": "a few held-out normals (quick)",
    "fixed": "nothing: their scores are probabilities",
}


def unlike(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on what makes figures of models of one test set unlike, beside the models.

    Parameters
    ----------
    rows
        With ``calibrate``, ``aim`` and ``crop`` as their runs have them, empty where these do not
        say.
    """
    said = []
    by = _groups(rows, "calibrate")
    if len(by) > 1:
        parts = [f"of {names} by {_SET_BY.get(how, how)}" for how, names in by.items()]
        said.append(
            f"thresholds were set {' and '.join(parts)}: recall, false alarms and F1 at them do "
            "not compare as AUROC does"
        )
    aims = _groups(rows, "aim")
    if len(aims) > 1:
        parts = [f"those of {names} at {aim}" for aim, names in aims.items()]
        said.append(
            f"thresholds aim at different things, {' and '.join(parts)}: recall, false alarms and "
            "F1 at them do not compare as AUROC does"
        )
    seen = _groups(rows, "crop")
    if len(seen) > 1:
        parts = [
            f"{names} {'all of it' if crop == 'none' else f'its middle, {crop}'}"
            for crop, names in seen.items()
        ]
        said.append(
            f"of each image saw {' and '.join(parts)}: what a crop cuts away counts as missed, "
            "and pixel figures are of other pixels"
        )
    return said


def aim_of(params: Mapping[str, str]) -> str:
    """Return what a model's threshold aims at, from its run's parameters; empty where it is fixed.

    Examples
    --------
    >>> aim_of({"target_fpr": "0.05"}), aim_of({"target_fpr": "0.05", "costs": "5:1"})
    ('a false-positive rate of 0.05', 'the least cost at 5:1')
    """
    if params.get("target_recall"):
        return f"a recall of {params['target_recall']} of known defects"
    if params.get("costs"):
        return f"the least cost at {params['costs']}"
    if params.get("calibrate") == "fixed" or not params.get("target_fpr"):
        return ""
    return f"a false-positive rate of {params['target_fpr']}"


def _groups(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """Return the models that have each value of a key, as far as it is known."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.get(key):
            found.setdefault(row[key], []).append(called(row))
    few = {k: [*v[:3], f"{len(v) - 3} more"] if len(v) > 4 else v for k, v in found.items()}
    return {value: ", ".join(names) for value, names in few.items()}


def best_known(
    rows: Sequence[Mapping[str, Any]], facts: Sequence[tuple[Mapping[str, str], Any] | None]
) -> list[str]:
    """Return a sentence on which model known defects choose: the test has no say in it.

    Parameters
    ----------
    rows
        Of one test set.
    facts
        Parameters as used and tags of each one's run.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row, known in zip(rows, facts, strict=True):
        # One whose rule these defects chose is measured on what it was chosen by.
        if known is None or known[0].get("score_chosen"):
            continue
        if "val_image_auroc" in row["metrics"]:
            groups.setdefault(known[0].get("validation_digest", ""), []).append(row)
    said = []
    for same in groups.values():
        best = max(row["metrics"]["val_image_auroc"] for row in same)
        first = [called(row) for row in same if row["metrics"]["val_image_auroc"] == best]
        count = int(same[0]["metrics"]["val_images"])
        if len(same) > 1:
            said.append(
                f"of {len(same)} models {' and '.join(sorted(first))} ranks the {count} known "
                f"defects best above normals (val image AUROC {best:.3f}); no test image has a say "
                "in that"
            )
    return said


def called(row: Mapping[str, Any]) -> str:
    """Return what a model is called beside others of its set."""
    return f"{row['head']} v{row['version']}"


def over_seeds(
    rows: Iterable[Mapping[str, Any]], facts: Iterable[tuple[Mapping[str, str], Mapping[str, str]]]
) -> list[dict[str, Any]]:
    """Return mean and spread of models that differ by their seed alone.

    Parameters
    ----------
    rows
        Of one test set.
    facts
        Parameters as used and tags of each one's run.

    Returns
    -------
    list of dict
        Of two seeds or more: ``head``, ``seeds``, ``versions`` (of several with a seed the newest),
        and ``figures``: by name ``mean``, ``sd`` (of a sample), ``low`` and ``high``.
    """
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row, (params, tags) in zip(rows, facts, strict=True):
        if "seed" not in params:
            continue
        left_out = (*NO_MATTER, "seed", "epochs")
        settings = {k: v for k, v in params.items() if k not in left_out}
        data = tags.get("data_digest") or tags.get("snapshot", "")
        same = groups.setdefault(json.dumps([row["head"], data, settings], sort_keys=True), {})
        known = same.get(params["seed"])
        if known is None or int(known["version"]) < int(row["version"]):
            same[params["seed"]] = row
    return [_spread(same) for same in groups.values() if len(same) > 1]


def _spread(same: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    order = sorted(same, key=lambda seed: (len(seed), seed))
    rows = [same[seed] for seed in order]
    names = set.intersection(*({*row["metrics"]} for row in rows))
    figures = {}
    for name in sorted(names):
        values = [row["metrics"][name] for row in rows]
        figures[name] = {
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values),
            "low": min(values),
            "high": max(values),
        }
    return {
        "head": rows[0]["head"],
        "seeds": order,
        "versions": [row["version"] for row in rows],
        "figures": figures,
    }
