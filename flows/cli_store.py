"""`headwater store`: the feature store of a set, for people who look after it."""

from __future__ import annotations

import typer

store_app = typer.Typer(
    help="Look after the feature store of an image set.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
