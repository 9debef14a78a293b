"""Commands: what the cluster makes of one where it is journalled, or given up.

A command is decided where it is journalled, so that it is never half-taken; what is then still to do follows from the
difference between wanted and seen alone. Whatever raises does so before it has changed anything.
"""

from dataclasses import replace

from pupitre.domain.command import (
    BootDesktop,
    CommandState,
    DestroyDesktop,
    Fault,
    Halt,
    desktop_of,
)
from pupitre.domain.command_kinds import fault_of
from pupitre.errors import Halted
from pupitre.scheduler import desktops, host_commands
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.host_commands import HostOrder
from pupitre.scheduler.state import JournaledCommand, ReadSet

SUSPENDED = (
    "The cluster's database is from the past: was a backup restored?"
    " An administrator has to confirm that it shall go on from there: pupitre cluster confirm"
)


def read_set_of(command: JournaledCommand, *, is_new: bool = False) -> ReadSet:
    """Read set of `accept` and `abandon`. ``is_new``: it has most likely never been journalled."""
    desktop = desktop_of(command.order)
    new = {command.id} if is_new else set()
    if is_new and isinstance(command.order, BootDesktop):
        new.add(command.order.desktop)
    return ReadSet(
        commands=frozenset({command.id}),
        desktops=frozenset({desktop} if desktop else ()),
        host_commands=isinstance(command.order, HostOrder),
        new=frozenset(new),
    )


def accept(
    changes: Changes,
    command: JournaledCommand,
    *,
    now: int,
    overcommit: float,
    notice_ms: int = 0,
    halted: bool = False,
    suspended: bool = False,
) -> bool:
    """Journal ``command`` and decide it; False when it had been journalled before.

    ``notice_ms`` is what users get to save their work before their host goes; ``halted``: nothing is begun any more;
    ``suspended``: nothing is begun before an administrator has spoken.
    """
    if registered := changes.command(command.id):
        if registered.outcome is not None:
            changes.repeat(command.id)  # who asks again does not have it, or not any more
        return False
    order = command.order
    if halted and not isinstance(order, Halt):
        fault = Fault(Halted.code, "The cluster is being halted. Ask again once it runs.")
        command = replace(command, outcome=CommandState.CANCELLED, fault=fault)
    elif suspended and not isinstance(order, Halt):
        command = replace(command, outcome=CommandState.FAILED, fault=Fault(fault_of(order).code, SUSPENDED))
    elif isinstance(order, BootDesktop):
        command = desktops.place(changes, command, order, now=now, overcommit=overcommit)
    elif isinstance(order, DestroyDesktop):
        command = desktops.want_gone(changes, command, order, now=now)
    elif isinstance(order, HostOrder):
        command = host_commands.decide(changes, command, order, now=now, notice_ms=notice_ms)
    changes.add_command(command, now=now)
    return True


def abandon(changes: Changes, command: JournaledCommand, *, now: int) -> None:
    """Abandon ``command``, for which nobody waits any more: what it made, or would make, shall not be."""
    registered = changes.command(command.id)
    if registered is None:
        cancelled = replace(command, outcome=CommandState.CANCELLED)
        changes.add_command(cancelled, now=now)
        return
    if registered.outcome is None and not isinstance(registered.order, DestroyDesktop):
        changes.finish(registered.id, CommandState.CANCELLED)
        host_commands.withdraw(changes, registered)
    if isinstance(registered.order, BootDesktop):
        placed = changes.desktop(registered.order.desktop)
        if placed:
            desktops.stop(changes, placed, now=now, reason="its start took too long")
