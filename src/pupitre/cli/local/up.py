"""``pupitre up``: everything on one machine."""

import os
from typing import Annotated

import typer

from pupitre import config
from pupitre.cli.output import Json

app = typer.Typer(add_completion=False)


@app.command()
def run(
    as_json: Json = False,
    hosts: Annotated[int | None, typer.Option(min=1, max=64, help="Hosts to run here. Default: the setting.")] = None,
) -> None:
    """Prepare what is missing, start everything, print one URL; stop all on Ctrl-C."""
    from pupitre.up.instance import up

    if hosts:
        os.environ["PUPITRE_HOSTS"] = str(hosts)  # for the children too
    up(config.load(), as_json=as_json)
