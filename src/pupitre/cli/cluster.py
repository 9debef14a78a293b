"""``pupitre cluster``: the cluster server of this machine, and the cluster as a whole."""

from typing import Annotated

import typer

from pupitre.cli.output import As, Json, NoWait, print_json

app = typer.Typer(add_completion=False, help="Run the cluster server (without a further word); halt the cluster.")


@app.callback(invoke_without_command=True)
def run(context: typer.Context) -> None:
    """Run the cluster server: placement, desired state, reconciliation; with a further word, manage the cluster."""
    if context.invoked_subcommand is not None:
        return
    from pupitre import ops
    from pupitre.cluster.process import run as main

    raise typer.Exit(ops.run_process("cluster", main))


@app.command()
def halt(
    hosts: Annotated[bool, typer.Option("--hosts", help="Stop the hosts, and what runs on them, too.")] = False,
    no_wait: NoWait = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Stop endpoint and cluster. Commands without an outcome are cancelled."""
    from pupitre.cli.client import order

    said = "The cluster and its hosts are halted." if hosts else "The cluster is halted. Its desktops run on."
    order("POST", "/cluster/halt", {"hosts": hosts}, said, who=who, no_wait=no_wait, as_json=as_json)


@app.command()
def confirm(as_json: Json = False) -> None:
    """After a backup of the cluster's database was restored: go on from it. To be run where the cluster server runs.

    Desktops that the database has lost are taken over from the hosts as they run; those that have ended since are
    marked as gone. Until then the cluster changes nothing and takes no command.
    """
    import asyncio

    from pupitre import config
    from pupitre.clock import now_ms
    from pupitre.store.cluster import ClusterStore
    from pupitre.store.engine import open_database

    async def confirmed() -> list[str]:
        store = ClusterStore(open_database(config.load(), "cluster", "cluster"))
        try:
            return await store.confirm(now=now_ms())
        finally:
            await store.close()

    hosts = asyncio.run(confirmed())
    if as_json:
        print_json({"hosts": hosts})
    elif hosts:
        print(f"Confirmed. The cluster takes over what runs on {', '.join(hosts)} within seconds.")
    else:
        print("There is nothing to confirm: the cluster does not wait for it.")
