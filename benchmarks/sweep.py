"""What benchmarks over sets, nets, heads and seeds have in common: options, means, the table."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def options(doc: str, sets: str, backbones: str, heads: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all have, with their defaults."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", default=sets)
    parser.add_argument("--backbones", default=backbones)
    parser.add_argument("--heads", default=heads)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of results, measure nothing")
    return parser


def parsed(
    parser: argparse.ArgumentParser, table: Callable[[Sequence[dict[str, Any]]], str]
) -> argparse.Namespace:
    """Return the options; with ``--table`` print that of a results file and end."""
    a = parser.parse_args()
    if a.table:
        print(table([json.loads(line) for line in a.table.read_text().splitlines()]))
        raise SystemExit
    return a


def mean_and_spread(rows: Sequence[Mapping[str, Any]], figure: str) -> str:
    """Return a figure's mean over rows, and its deviation where there are several."""
    values = [row[figure] for row in rows]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"
