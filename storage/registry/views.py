"""Saved views of an experiment's runs: which columns, which charts.

By itself MLflow 3.17 shows a table of runs without a figure. It keeps a saved view as a tag of the
experiment, a name and the state of its page in JSON: with those made here the figures, the curves
and the grid are one click away on any server (the button "Views"). A version of MLflow that does
not know such a tag leaves it alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TAG = "mlflow.sharedViewState."
#: Behind a route: opens a saved view.
QUERY = "viewStateShareKey"
FIGURES, GRID = "headwater-figures", "headwater-grid"

#: Of image sets and of pairs, by their names in MLflow.
_METRICS = (
    *("image_auroc", "pixel_auroc", "aupro", "image_f1", "image_recall"),
    *("image_false_positive_rate", "pixel_iou", "pixel_f1", "pixel_precision", "pixel_recall"),
    "seconds",
)
_PARAMS = ("backbone", "input_size", "seed", "train_images", "held_out_images", "test_images")
_POINT = ("image_auroc", "pixel_auroc")


def columns(
    metrics: Sequence[str] = _METRICS,
    params: Sequence[str] = _PARAMS,
    tags: Sequence[str] = ("headwater.notes",),
) -> list[str]:
    """Return what MLflow's table calls its columns.

    Examples
    --------
    >>> columns(["aupro"], ["backbone"], [])
    ['metrics.`aupro`', 'params.`backbone`', 'attributes.`Models`']
    """
    groups = {"metrics": metrics, "params": params, "tags": tags, "attributes": ["Models"]}
    return [f"{group}.`{name}`" for group, names in groups.items() for name in names]


def state(selected: Sequence[str] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the state of a page of runs: MLflow's own, but for its columns and `changes`."""
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns() if selected is None else list(selected),
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        **changes,
    }


def charts(sections: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the part of a state that holds charts, by the names of their sections."""
    cards: list[dict[str, Any]] = []
    for section, kept in sections.items():
        for number, card in enumerate(kept):
            named = {"uuid": f"{section}-{number}", "metricSectionId": section}
            kept_as = {"deleted": False, "isGenerated": False, "runsCountToCompare": 20}
            cards.append({**named, **kept_as, **card})
    made = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
    return {
        "compareRunCharts": cards,
        "compareRunSections": [{"uuid": s, "name": s, **made} for s in sections],
        "isAccordionReordered": True,
    }


def contour(metric: str) -> dict[str, Any]:
    """Return a chart of a figure over alpha and beta, each a run's parameter."""
    axes = {"xaxis": "alpha", "yaxis": "beta"}
    return {
        "type": "CONTOUR",
        **{axis: {"key": key, "type": "PARAM"} for axis, key in axes.items()},
        "zaxis": {"key": metric, "type": "METRIC"},
    }


def view_tag(view: str, name: str, page: Mapping[str, Any]) -> tuple[str, str]:
    """Return the experiment's tag that holds a view."""
    told = {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(page)}
    return _TAG + view, json.dumps(told)


def all_views() -> dict[str, str]:
    """Return the tags of the views of an image set's experiment."""
    return dict([view_tag(FIGURES, "Figures", state())])


def grid_views() -> dict[str, str]:
    """Return the tags of the views of an experiment of points over alpha and beta."""
    shown = charts({"Over alpha and beta": [contour(metric) for metric in _POINT]})
    selected = columns(_POINT, ("alpha", "beta"), ())
    page = state(selected, runsHiddenMode="SHOW_ALL", **shown)
    return dict([view_tag(GRID, "Over alpha and beta", page)])
