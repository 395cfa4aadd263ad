"""What MLflow's pages say of a set, a model, a version, a run: Markdown, with links that travel.

Links are relative (``#/models/...``, ``get-artifact?...``): they are right at any address that the
pages are served from. What a user writes around our part of a description stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from headwater.text import shown

#: Behind a route: MLflow's pages about training models, not those about agents.
MODE = {"workflowType": "machine_learning"}
#: The tag of a run, an experiment or a logged model that MLflow shows as its description.
NOTE = "mlflow.note.content"
#: Above this line a description is ours and is written anew, below it is the user's. Ours is first
#: because lists show how descriptions begin.
_OURS = "<!-- headwater writes what is above this line anew; what is below stays -->"
#: MLflow's columns for descriptions of models and versions hold as many characters.
MODEL_LIMIT, RUN_LIMIT, SET_LIMIT = 5000, 8000, 20000
#: The figures that matter, best known first: of image sets, then of pairs.
FIGURES = {
    "image_auroc": "image AUROC",
    "val_image_auroc": "val image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "pixel_aupimo": "AUPIMO",
    "iou": "IoU",
    "auc": "AUC",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false alarms",
}


def route(path: str, **query: str) -> str:
    """Return the address of a page of MLflow.

    Examples
    --------
    >>> route("models/bolts.padim")
    '#/models/bolts.padim?workflowType=machine_learning'
    """
    return f"#/{quote(path)}?{urlencode(MODE | query)}"


def artifact(run_id: str, path: str) -> str:
    """Return the address of a run's artifact.

    Examples
    --------
    >>> artifact("1a", "figures/heat-maps.png")
    'get-artifact?path=figures%2Fheat-maps.png&run_uuid=1a'
    """
    return "get-artifact?" + urlencode({"path": path, "run_uuid": run_id})


def run_page(experiment: str, run_id: str, tab: str = "") -> str:
    """Return the address of a run's page, or of one of its tabs (``model-metrics``, ...)."""
    return route(f"experiments/{experiment}/runs/{run_id}" + (f"/{tab}" if tab else ""))


def version_page(model: str, version: str) -> str:
    """Return the address of a model version's page."""
    return route(f"models/{model}/versions/{version}")


def plain(text: str) -> str:
    r"""Return text that Markdown, HTML and terminals leave alone.

    Examples
    --------
    >>> plain("a|b <i> [x](y)")
    'a&#124;b &#60;i&#62; &#91;x&#93;(y)'
    >>> plain("\x1b[31m")
    '&#92;x1b&#91;31m'
    """
    text = shown(" ".join(str(text).split()))
    return re.sub(r"[|<>\[\]*_`\\&#!]", lambda found: f"&#{ord(found[0])};", text)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    # MLflow's style leaves no room between columns.
    spaced = [[c if c == "---" else f"{c}&emsp;" for c in cells] for cells in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in spaced)


def number(value: float | None) -> str:
    """Return a figure with four decimals, an en dash where it was not measured."""
    return "–" if value is None else f"{value:.4f}"


def headline(metrics: Mapping[str, float]) -> str:
    """Return the figures that matter in a line.

    Examples
    --------
    >>> headline({"image_auroc": 0.98765, "fit_seconds": 3.0})
    'image AUROC 0.9877'
    """
    return " · ".join(f"{text} {number(metrics[k])}" for k, text in FIGURES.items() if k in metrics)


def training(
    *,
    metrics: Mapping[str, float],
    facts: Mapping[str, str],
    notes: Sequence[str],
    pictures: Sequence[str],
    run_id: str,
    links: Mapping[str, str],
    limit: int,
) -> str:
    """Return the description of a training, for its run and for the version that it made.

    Parameters
    ----------
    metrics
        Final figures.
    facts
        What was trained on what, in words: name to value.
    notes
        What one has to know to read the figures.
    pictures
        Artifacts of the run that are shown.
    run_id
        Of the run that holds them.
    links
        Text to address.
    limit
        Most characters; notes are left out before anything else.
    """
    parts = [headline(metrics) or "No figures: there was nothing to test on.", joined(links)]
    drawn = [picture(run_id, path) for path in pictures]
    about = table(["", ""], [[name, plain(value)] for name, value in facts.items() if value])
    room = limit - 100 - sum(len(part) + 2 for part in [*parts, *drawn, about])
    for note in notes:
        line = f"**Note:** {plain(note)}"
        room -= len(line) + 2
        if room < 0:
            parts.append("**Note:** there is more, in the tag `headwater.notes`.")
            break
        parts.append(line)
    return "\n\n".join([*parts, *drawn, about])


def joined(links: Mapping[str, str]) -> str:
    """Return links, text to address, in a line."""
    return " · ".join(f"[{text}]({to})" for text, to in links.items())


def picture(run_id: str, path: str) -> str:
    """Return a picture among a run's artifacts."""
    return f"![{plain(path)}]({artifact(run_id, path)})"


def board(rows: Sequence[Mapping[str, Any]], called: Callable[[Mapping[str, Any]], str]) -> str:
    """Return a table of the figures that matter: a row a version, of a registry's leaderboard."""
    keys = [k for k in FIGURES if any(k in row["metrics"] for row in rows)]
    lines = []
    for row in rows:
        cells = [f"[{plain(called(row))}]({version_page(row['model'], row['version'])})"]
        cells += [plain(", ".join(row["aliases"])) or "–", plain(row["backbone"]) or "–"]
        cells += [number(row["metrics"].get(k)) for k in keys]
        lines.append([*cells, row["created"][:10]])
    return table(["model", "alias", "backbone", *(FIGURES[k] for k in keys), "trained"], lines)


def merged(before: str, ours: str) -> str:
    """Return a description with our part of it written anew; what a user wrote below it stays.

    Examples
    --------
    >>> kept = merged("Line 3, ask Ada.", "figures")
    >>> kept = merged(kept, "new figures")
    >>> kept.splitlines()[0], kept.splitlines()[-1], kept.count("figures")
    ('new figures', 'Line 3, ask Ada.', 1)
    """
    _, found, rest = before.partition(_OURS)
    theirs = (rest if found else before).strip()
    return f"{ours}\n\n{_OURS}" + (f"\n\n{theirs}" if theirs else "")
