"""``pupitre db``: the four databases."""

import typer

from pupitre import config
from pupitre.cli.output import Json, print_json

app = typer.Typer(add_completion=False, help="Create and upgrade the databases.", no_args_is_help=True)


@app.command()
def create(as_json: Json = False) -> None:
    """Create the databases commands, status, accounts and cluster; those that exist are brought up to date."""
    _bring_up_to_date(as_json)


@app.command()
def upgrade(as_json: Json = False) -> None:
    """Bring every database to the newest layout."""
    _bring_up_to_date(as_json)


def _bring_up_to_date(as_json: bool) -> None:
    from pupitre.up.instance import make_folders
    from pupitre.up.prepare import ensure_databases

    settings = config.load()
    make_folders(settings)
    changed = ensure_databases(settings)
    if as_json:
        print_json({"changed": changed, "folder": str(settings.home / "db")})
    elif changed:
        print(f"Up to date: {', '.join(changed)} in {settings.home / 'db'}.")
    else:
        print("All databases were up to date already.")
