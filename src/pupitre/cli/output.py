"""Output of every command: ``--json``, tables, and seconds that a person can read."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from pupitre.domain.text import shown

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Act as this user, on the portal's own machine. Else PUPITRE_TOKEN."),
]

NoWait = Annotated[bool, typer.Option("--no-wait", help="Return as soon as the wish is written down.")]

WIDTH = 140
"""Columns a table may take even where the terminal has fewer, or is none."""


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


def print_items(items: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, none: str) -> None:
    """A table with ``columns`` (key: heading), or the items as they are; ``none`` is said when there are none."""
    if as_json:
        print_json({"items": list(items), "next": None})
        return
    if not items:
        print(none)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(columns.values(), start=1):
        # Ids are there to be copied: on a narrow terminal only the last column, the reason, is folded.
        table.add_column(heading, no_wrap=number < len(columns), overflow="fold")
    for item in items:
        table.add_row(*(escape(_cell(item.get(key))) for key in columns))
    Console(width=max(Console().width, WIDTH)).print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """One thing, a line for each of its properties."""
    width = max(len(name) for name in fields) + 2
    for name, value in fields.items():
        print(f"{name:<{width}}{_cell(value)}")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(str(value))


def short_time(moment: str) -> str:
    """A moment of the REST API (ISO 8601) as local date and time."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
