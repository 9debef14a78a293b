"""``pupitre db``: the four databases."""

import asyncio
import os
import sys
from typing import Annotated

import typer

from pupitre import config
from pupitre.cli.output import Json, print_json

DAY_MS = 24 * 3600 * 1000

app = typer.Typer(add_completion=False, help="Create and upgrade the databases.", no_args_is_help=True)

Url = Annotated[
    str | None,
    typer.Option(
        help="The server and its administrator, as postgresql://root@host:5432 or mariadb://root@host:3306."
        " Without a password, it is taken from PUPITRE_DATABASE_PASSWORD, or asked for."
    ),
]
Prefix = Annotated[str, typer.Option(help="What the names of databases and users begin with.")]
NewPasswords = Annotated[
    bool, typer.Option("--new-passwords", help="Take over users that are there and whose passwords are not known here.")
]


@app.command()
def create(
    url: Url = None, prefix: Prefix = "pupitre", new_passwords: NewPasswords = False, as_json: Json = False
) -> None:
    """Create the databases commands, status, accounts and cluster; those that exist are brought up to date.

    With --url on a server, with a user for each role that may do there what it needs and nothing else; their
    addresses are written to databases.json. Without it in files of SQLite, or where databases.json says.
    """
    made, there = _provision(url, prefix, new_passwords) if url is not None else ([], [])
    _bring_up_to_date(as_json, made, there)


@app.command()
def upgrade(as_json: Json = False) -> None:
    """Bring every database to the newest layout."""
    _bring_up_to_date(as_json, [], [])


@app.command()
def prune(as_json: Json = False) -> None:
    """Take away lines of the audit log after audit_days, and ended commands after command_days.

    It needs the owner's addresses of the databases; where `pupitre up` runs, it is done daily.
    """
    from pupitre.runtime.clock import now_ms
    from pupitre.store.admin.prune import Pruned
    from pupitre.store.admin.prune import prune as prune_database
    from pupitre.store.sql.engine import open_database

    settings, now = config.load(), now_ms()

    async def pruned() -> Pruned:
        database = open_database(settings, "owner", "commands")
        try:
            return await prune_database(
                database,
                audit_before=now - int(settings.audit_days * DAY_MS),
                commands_before=now - int(settings.command_days * DAY_MS),
            )
        finally:
            await database.close()

    gone = asyncio.run(pruned())
    if as_json:
        print_json({"audit": gone.audit, "commands": gone.commands})
    else:
        print(f"Taken away: {gone.audit} lines of the audit log, {gone.commands} commands.")


def _provision(url: str, prefix: str, new_passwords: bool) -> tuple[list[str], list[str]]:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from pupitre.errors import SetupError
    from pupitre.store.admin.provision import provision
    from pupitre.up.instance import make_folders

    try:
        root = make_url(url)
    except ArgumentError:
        raise SetupError("--url is not an address.", "Write it as postgresql://root@host:5432") from None
    if root.password is None:
        given = os.environ.get("PUPITRE_DATABASE_PASSWORD")
        if given is None and sys.stdin.isatty():
            given = typer.prompt(f"Password of {root.username} at {root.host}", hide_input=True, default="", err=True)
        root = root.set(password=given or None)
    settings = config.load()
    make_folders(settings)
    report = asyncio.run(provision(settings, root, prefix=prefix, new_passwords=new_passwords))
    return report.made, report.there


def _bring_up_to_date(as_json: bool, made: list[str], there: list[str]) -> None:
    from pupitre.up.instance import make_folders
    from pupitre.up.prepare import ensure_databases

    settings = config.load()
    make_folders(settings)
    changed = ensure_databases(settings)
    on_server = settings.database_urls() is not None
    where = settings.databases_file if on_server else settings.home / "db"
    if as_json:
        print_json({"made": made, "there": there, "changed": changed, "folder": str(where)})
        return
    if made:
        print(f"Made: {', '.join(made)}.")
    if there:
        print(f"There already: {', '.join(there)}.")
    if changed:
        print(f"Up to date: {', '.join(changed)} {'by' if on_server else 'in'} {where}.")
    else:
        print("All databases were up to date already.")
