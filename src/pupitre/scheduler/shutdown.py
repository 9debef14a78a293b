"""Shutdown of the cluster: commands that are under way are cancelled, hosts shut down, and the halts succeed."""

from collections.abc import Collection, Sequence

from pupitre.domain.command import BootDesktop, CommandState, Fault
from pupitre.domain.host import HostState
from pupitre.errors import Halted
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import stop
from pupitre.scheduler.host_commands import ANSWERING, AT_ONCE, SHUT_DOWN
from pupitre.scheduler.state import JournaledCommand

FAULT = Fault(Halted.code, "The cluster was halted before this was done. Ask again once it runs.")


def cancel(changes: Changes, commands: Sequence[JournaledCommand], now: int) -> None:
    """End the commands; what a start has made is not wanted any more."""
    for command in commands:
        registered = changes.command(command.id)
        if registered is None or registered.outcome is not None:
            continue
        changes.finish(command.id, CommandState.CANCELLED, FAULT)
        if isinstance(registered.order, BootDesktop) and (placed := changes.desktop(registered.order.desktop)):
            stop(changes, placed, now=now, reason="the cluster was halted")


def want_hosts_down(changes: Changes) -> None:
    """Have every host that is not down shut down, without notice."""
    for registered in list(changes.hosts.values()):
        if registered.host.state is not HostState.SHUT_DOWN:
            changes.put_host(registered.host, wanted=SHUT_DOWN, drained_by=AT_ONCE)


def hosts_leaving(changes: Changes) -> list[str]:
    """The names of hosts that answer and are to shut down; one that was down and is back again has done so."""
    return [
        registered.host.name
        for registered in changes.hosts.values()
        if registered.host.state in ANSWERING and registered.wanted == SHUT_DOWN
    ]


def succeed(changes: Changes, commands: Collection[str]) -> None:
    for command in commands:
        changes.finish(command, CommandState.SUCCEEDED)
