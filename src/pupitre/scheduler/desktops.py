"""Desktops: where one is placed, what is wanted of it, and what its host sees of it."""

from dataclasses import replace

from pupitre.domain.command import BootDesktop, CommandKind, CommandState, DestroyDesktop, Fault
from pupitre.domain.desktop import DESKTOP_LIFE, Desktop, DesktopEvent, DesktopState
from pupitre.errors import BootFailure, DestructionFault
from pupitre.scheduler import placement
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop

ENDING = frozenset({DesktopState.STOPPING, DesktopState.FAILED, DesktopState.GONE})


def place(
    changes: Changes, command: JournaledCommand, order: BootDesktop, *, now: int, overcommit: float
) -> JournaledCommand:
    """``command``, and its desktop on the host that fits best; or with the reason why none does."""

    def failed(reason: str) -> JournaledCommand:
        return replace(command, outcome=CommandState.FAILED, fault=Fault(BootFailure.code, reason))

    if changes.desktop(order.desktop):
        return failed("There is a desktop with this id already.")
    image = changes.image(order.image)
    if image is None:
        return failed(f"No host has the image {order.image} ready.")
    need = placement.Need(image.id, image.memory_mib, image.vcpus, order.edition)
    host = placement.choose(need, changes.candidates(image.id, overcommit=overcommit))
    if isinstance(host, placement.NoPlace):
        return failed(str(host))
    desktop = Desktop(
        id=order.desktop,
        owner=command.user,
        image=order.image,
        host=host,
        state=DESKTOP_LIFE.initial,
        since=now,
        created=now,
        boot=1,
    )
    memory = image.memory_mib + changes.overhead(host, image.id)
    changes.put_desktop(PlacedDesktop(desktop, DesktopState.RUNNING, memory, image.vcpus))
    return command


def want_gone(changes: Changes, command: JournaledCommand, order: DestroyDesktop, *, now: int) -> JournaledCommand:
    """``command``, with its outcome if nothing is left to do."""
    placed = changes.desktop(order.desktop)
    if placed is None:
        fault = Fault(DestructionFault.code, "There is no such desktop.")
        return replace(command, outcome=CommandState.FAILED, fault=fault)
    for boot in changes.open_commands(order.desktop, CommandKind.BOOT_DESKTOP):
        changes.finish(boot.id, CommandState.CANCELLED)
    if stop(changes, placed, now=now, reason=None):
        return replace(command, outcome=CommandState.SUCCEEDED)
    return command


def stop(changes: Changes, placed: PlacedDesktop, *, now: int, reason: str | None, until: int | None = None) -> bool:
    """Want the desktop gone; True when nothing is left of it already.

    ``until`` is there when its host is shut down in order: then its guest may take its time to shut down.
    """
    if placed.seen.state is DesktopState.GONE:
        return True
    event = DesktopEvent.STOP if placed.seen.host else DesktopEvent.END
    state = DESKTOP_LIFE.next(placed.seen.state, event)
    since = placed.seen.since if state is placed.seen.state else now
    seen = replace(placed.seen, state=state, since=since, reason=reason, until=until)
    changes.put_desktop(replace(placed, seen=seen, wanted=DesktopState.GONE))
    return state is DesktopState.GONE


def observe(changes: Changes, placed: PlacedDesktop, event: DesktopEvent, *, reason: str | None, now: int) -> None:
    """Write what a host saw of a desktop, and the outcomes of commands that waited for it."""
    if not DESKTOP_LIFE.allows(placed.seen.state, event):
        return
    desktop = placed.seen.id
    destroying = changes.open_commands(desktop, CommandKind.DESTROY_DESKTOP)
    if placed.seen.state is DesktopState.FAILED and event is DesktopEvent.END and not destroying:
        # Nothing is left on the host, but its owner has yet to read why it failed.
        changes.put_desktop(replace(placed, seen=replace(placed.seen, host=None)))
        return
    state = DESKTOP_LIFE.next(placed.seen.state, event)
    is_leaving = placed.seen.state is DesktopState.STOPPING or event is DesktopEvent.END
    if reason is None and (is_leaving or (event is DesktopEvent.RUN and placed.seen.until is not None)):
        reason = placed.seen.reason  # why it was, or is about to be, taken away
    if state is placed.seen.state and reason == placed.seen.reason:
        return
    since = placed.seen.since if state is placed.seen.state else now
    seen = replace(placed.seen, state=state, since=since, reason=reason)
    wanted = DesktopState.GONE if state in ENDING else placed.wanted
    changes.put_desktop(replace(placed, seen=seen, wanted=wanted))

    booting = changes.open_commands(desktop, CommandKind.BOOT_DESKTOP)
    if placed.wanted is DesktopState.RUNNING and wanted is DesktopState.GONE and not booting:
        action = "desktop_failed" if state is DesktopState.FAILED else "desktop_ended"
        changes.audit(action, desktop, reason or f"{placed.seen.host} gave no reason.", now=now)
    for command in booting:
        if state is DesktopState.RUNNING:
            changes.finish(command.id, CommandState.SUCCEEDED)
        elif state in (DesktopState.FAILED, DesktopState.GONE):
            why = reason or "It ended before it ran."
            changes.finish(command.id, CommandState.FAILED, Fault(BootFailure.code, why))
    for command in destroying:
        if state is DesktopState.GONE:
            changes.finish(command.id, CommandState.SUCCEEDED)
        elif event is DesktopEvent.FAIL:
            why = reason or "The host could not remove it and goes on trying."
            changes.finish(command.id, CommandState.FAILED, Fault(DestructionFault.code, why))


def lose_desktops(changes: Changes, host: str, *, now: int) -> None:
    """The host has been silent too long: what runs there may run on, but nobody knows."""
    changes.audit("host_lost", host, "It does not answer; its desktops are lost until it does.", now=now)
    for placed in changes.desktops_on(host):
        if DESKTOP_LIFE.allows(placed.seen.state, DesktopEvent.LOSE) and placed.seen.state is not DesktopState.LOST:
            reason = f"{host} does not answer"
            observe(changes, placed, DesktopEvent.LOSE, reason=reason, now=now)
            changes.audit("desktop_lost", placed.seen.id, reason, now=now)
