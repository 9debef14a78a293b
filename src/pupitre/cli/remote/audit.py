"""``pupitre audit``: who asked for what, from where, when, and what came of it."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any

import typer

from pupitre.cli.output import As, Json, print_items, short_time
from pupitre.errors import Invalid

app = typer.Typer(add_completion=False)

COLUMNS = {"at": "When", "actor": "Who", "origin": "From", "action": "What", "subject": "Subject",
           "outcome": "Outcome", "detail": "Detail"}  # fmt: skip
FIELDS = ("id", "at", "actor", "actor_id", "origin", "action", "subject", "command", "outcome", "detail")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@app.command()
def audit(
    text: Annotated[str | None, typer.Argument(help="Looked for in names, subjects, details, outcomes.")] = None,
    user: Annotated[str | None, typer.Option(help="A name or an id.")] = None,
    action: Annotated[str | None, typer.Option(help="As boot_desktop or sign_in.")] = None,
    outcome: Annotated[str | None, typer.Option(help="As COMMAND_EXECUTED or refused.")] = None,
    since: Annotated[str | None, typer.Option(help="2026-01-31, 2026-01-31T08:00, or how long ago: 90m, 12h, 7d.")] = (
        None
    ),
    until: Annotated[str | None, typer.Option(help="As --since; not included.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows of the table, the newest first.")] = 50,
    who: As = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every entry as CSV.")] = False,
) -> None:
    """Read the audit log, the newest first. --json and --csv print every entry, as it comes."""
    from pupitre.cli.remote.client import connect

    if as_json and as_csv:
        raise Invalid("--json and --csv contradict each other. Give one of them.")
    with connect(who) as client:
        entries = client.each(
            "/audit", text=text, user=user, action=action, outcome=outcome,
            since=_moment(since), until=_moment(until), limit=200 if as_json or as_csv else min(limit, 200),
        )  # fmt: skip
        if as_json:
            _print_json(entries)
        elif as_csv:
            _print_csv(entries)
        else:
            rows = [
                entry | {"at": short_time(entry["at"]) if entry["at"] else "unknown"}
                for entry in islice(entries, limit)
            ]
            print_items(rows, COLUMNS, as_json=False, none="Nothing of that kind is in the audit log.")


def _moment(given: str | None) -> str | None:
    """ISO 8601 with an offset. Raises `Invalid`."""
    if given is None:
        return None
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", given):
        return (datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat()
    try:
        return datetime.fromisoformat(given).astimezone().isoformat()
    except ValueError as error:
        raise Invalid(f"{given!r} is no moment. Write it as 2026-01-31, 2026-01-31T08:00, 90m, 12h or 7d.") from error


def _print_json(entries: Iterator[dict[str, Any]]) -> None:
    """One JSON object, as every list; written entry by entry, since a log may be long."""
    print('{"items": [', end="")
    for number, entry in enumerate(entries):
        print("," if number else "", json.dumps(entry), sep="\n", end="")
    print('\n], "next": null}')


def _print_csv(entries: Iterable[dict[str, Any]]) -> None:
    table = csv.writer(sys.stdout)
    table.writerow(FIELDS)
    for entry in entries:
        table.writerow([_cell(entry[field]) for field in FIELDS])


def _cell(value: object) -> str:
    """Text that a spreadsheet shows and does not run: some of it was typed by people who could not sign in."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
