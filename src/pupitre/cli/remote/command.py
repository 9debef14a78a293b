"""``pupitre command``: what was asked for, and what became of it."""

from datetime import datetime
from typing import Annotated

import typer

from pupitre.cli.output import As, Json, print_items, print_json, short_time

app = typer.Typer(add_completion=False, help="What was asked for, and what became of it.", no_args_is_help=True)
COLUMNS = {"id": "Command", "kind": "Kind", "state": "State", "outcome": "Outcome", "subject": "Subject",
           "created": "Asked", "why": "Reason"}  # fmt: skip
Id = Annotated[str, typer.Argument(metavar="ID")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, the newest first.")] = 20,
    who: As = None,
    as_json: Json = False,
) -> None:
    """One's own commands, the newest first."""
    from pupitre.cli.remote.client import connect

    with connect(who) as client:
        commands = client.get(f"/commands?limit={limit}")["items"]
    print_items(
        commands if as_json else [_row(command) for command in commands], COLUMNS, as_json=as_json, none="No commands."
    )


@app.command()
def show(command: Id, who: As = None, as_json: Json = False) -> None:
    """One command."""
    from pupitre.cli.remote.client import connect, path_of

    with connect(who) as client:
        found = client.get(path_of("commands", command))
    if as_json:
        print_json(found)
    else:
        print_items([_row(found)], COLUMNS, as_json=False, none="")


@app.command()
def wait(command: Id, who: As = None, as_json: Json = False) -> None:
    """Tell each step of a command until its outcome; exit code 1 when it did not succeed."""
    from pupitre.cli.remote.client import connect, wait_for_outcome

    with connect(who) as client:
        found = wait_for_outcome(client, command, quiet=as_json)
    if as_json:
        print_json(found)
    else:
        print(f"{found['outcome']} after {_seconds(found):.1f} s.")


def _seconds(command: dict[str, str]) -> float:
    return (datetime.fromisoformat(command["finished"]) - datetime.fromisoformat(command["created"])).total_seconds()


def _row(command: dict[str, object]) -> dict[str, object]:
    error = command.get("error")
    why = error.get("reason") if isinstance(error, dict) else None
    return command | {"created": short_time(str(command["created"])), "why": why, "subject": command["subject"] or None}
