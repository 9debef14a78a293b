"""``pupitre command``: what was asked for, and what became of it."""

from typing import Annotated

import typer

from pupitre.cli.output import As, Json, print_items, print_json, short_time

app = typer.Typer(add_completion=False, help="What was asked for, and what became of it.", no_args_is_help=True)
COLUMNS = {"id": "Command", "kind": "Kind", "state": "State", "desktop": "Desktop", "created": "Asked", "why": "Reason"}


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, the newest first.")] = 20,
    who: As = None,
    as_json: Json = False,
) -> None:
    """One's own commands, the newest first."""
    from pupitre.cli.client import connect

    with connect(who) as client:
        commands = client.get(f"/commands?limit={limit}")["items"]
    print_items(
        commands if as_json else [_row(command) for command in commands], COLUMNS, as_json=as_json, none="No commands."
    )


@app.command()
def show(command: Annotated[str, typer.Argument(metavar="ID")], who: As = None, as_json: Json = False) -> None:
    """One command."""
    from pupitre.cli.client import connect

    with connect(who) as client:
        found = client.get(f"/commands/{command}")
    if as_json:
        print_json(found)
    else:
        print_items([_row(found)], COLUMNS, as_json=False, none="")


def _row(command: dict[str, object]) -> dict[str, object]:
    error = command.get("error")
    why = error.get("reason") if isinstance(error, dict) else None
    late = f" (late: {command['late']})" if command.get("late") else ""
    return command | {"created": short_time(str(command["created"])), "why": why, "state": f"{command['state']}{late}"}
