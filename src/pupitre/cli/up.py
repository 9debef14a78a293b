"""``pupitre up``: everything on one machine."""

import typer

from pupitre import config
from pupitre.cli.output import Json

app = typer.Typer(add_completion=False)


@app.command()
def run(as_json: Json = False) -> None:
    """Prepare what is missing, start everything, print one URL; stop all on Ctrl-C."""
    from pupitre.up.instance import up

    up(config.load(), as_json=as_json)
