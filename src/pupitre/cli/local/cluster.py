"""``pupitre cluster``: the cluster server of this machine, and the cluster as a whole."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pupitre.cli.output import As, Json, NoWait, print_json

if TYPE_CHECKING:
    from pupitre.store.restore_conflicts import ConflictingHost

app = typer.Typer(add_completion=False, help="Run the cluster server (without a further word); halt the cluster.")


@app.callback(invoke_without_command=True)
def run(context: typer.Context) -> None:
    """Run the cluster server: placement, desired state, reconciliation; with a further word, manage the cluster."""
    if context.invoked_subcommand is not None:
        return
    from pupitre.cluster.process import run as main
    from pupitre.net import ops

    raise typer.Exit(ops.run_process("cluster", main))


@app.command()
def halt(
    hosts: Annotated[bool, typer.Option("--hosts", help="Stop the hosts, and what runs on them, too.")] = False,
    no_wait: NoWait = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Stop endpoint and cluster. Commands without an outcome are cancelled."""
    from pupitre.cli.remote.client import order

    said = "The cluster and its hosts are halted." if hosts else "The cluster is halted. Its desktops run on."
    order("POST", "/cluster/halt", {"hosts": hosts}, said, who=who, no_wait=no_wait, as_json=as_json)


@app.command()
def confirm(
    hosts: Annotated[list[str] | None, typer.Argument(metavar="[HOST]…", help="Only these; without, all.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Go on after a backup of the cluster's database was restored. To be run where the cluster server runs.

    Shows, host by host, which desktops the database has lost. Those that the cluster's own key has signed for that
    host are taken over from it as they run; the others stay as they are. Those that have ended since are marked as
    gone. Until then the cluster changes nothing and takes no command, or sets the host aside that alone says so.
    """
    import asyncio

    from pupitre import config
    from pupitre.runtime.clock import now_ms
    from pupitre.store import restore_conflicts
    from pupitre.store.sql.engine import open_database

    async def decided() -> tuple[list[restore_conflicts.ConflictingHost], list[str]]:
        database = open_database(config.load(), "cluster", "cluster")
        try:
            waiting = [one for one in await restore_conflicts.waiting(database) if not hosts or one.host in hosts]
            names = [one.host for one in waiting]
            if not as_json:
                print(_plan(waiting))
            if not waiting or not (yes or as_json or typer.confirm("Go on from here?")):
                return waiting, []
            return waiting, await restore_conflicts.confirm(database, now=now_ms(), hosts=names)
        finally:
            await database.close()

    waiting, confirmed = asyncio.run(decided())
    if as_json:
        plan = [
            {"host": one.host, "proven": one.conflict.proven, "guests": [asdict(guest) for guest in one.guests]}
            for one in waiting
        ]
        print_json({"hosts": confirmed, "plan": plan})
    elif confirmed:
        print(f"Confirmed. The cluster takes over what runs on {', '.join(confirmed)} within seconds.")
    elif waiting:
        print("Nothing is changed. A host that is not to be believed: pupitre host unregister HOST --at-once")


def _plan(waiting: "Sequence[ConflictingHost]") -> str:
    """Plan of a take-over, host by host."""
    if not waiting:
        return "There is nothing to confirm: the cluster does not wait for it."
    lines = []
    for one in waiting:
        evidence = "it shows an order of this cluster's" if one.conflict.proven else "it shows no proof"
        lines.append(f"{one.host} knows more than the cluster's database ({evidence}). Lost here, and there:")
        for guest in one.guests:
            what = f"{guest.desktop} ({guest.image or 'unknown image'}, {guest.state})"
            whom = (
                f"taken over for {guest.owner}"
                if guest.proven
                else "left as it is: the cluster's key has not signed it"
            )
            lines.append(f"  {what}: {whom}")
        lines += [] if one.guests else ["  no desktop"]
    return "\n".join(lines)
