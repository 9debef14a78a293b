"""``pupitre host``: the agent of this VM server, and the hosts of the cluster."""

from typing import Annotated

import typer

from pupitre.cli.output import As, Json, print_items, print_json, short_time

app = typer.Typer(
    add_completion=False, help="Run this VM server's agent (without a further word); register and list hosts."
)


@app.callback(invoke_without_command=True)
def run(context: typer.Context) -> None:
    """Run the agent of this VM server; with a further word, manage the hosts of the cluster."""
    if context.invoked_subcommand is not None:
        return
    from pupitre.host.process import main

    raise typer.Exit(main())


@app.command()
def register(
    name: str,
    address: Annotated[str, typer.Argument(help="Where the gateway reaches its consoles.")],
    port: Annotated[int, typer.Argument(min=1, max=65535)],
    edition: Annotated[bool, typer.Option("--edition", help="A host on which images are edited.")] = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Make a VM server part of the cluster; its agent must be running."""
    from pupitre.cli.client import connect, wait_for_outcome

    with connect(who) as client:
        body = {"name": name, "address": address, "port": port, "edition": edition}
        command = wait_for_outcome(client, client.post("/hosts", body)["command"], quiet=as_json)
    if as_json:
        print_json(command)
    else:
        print(f"{name} is registered.")


@app.command("list")
def list_(who: As = None, as_json: Json = False) -> None:
    """The hosts of the cluster."""
    from pupitre.cli.client import connect

    with connect(who) as client:
        hosts = client.items("/hosts")
    columns = {"name": "Host", "state": "State", "address": "Address", "port": "Port", "edition": "Edition",
               "since": "Since", "reason": "Reason"}  # fmt: skip
    if not as_json:
        hosts = [host | {"since": short_time(host["since"])} for host in hosts]
    print_items(hosts, columns, as_json=as_json, none="No hosts yet. Register one: pupitre host register --help")
