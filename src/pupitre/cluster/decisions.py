"""What a command and a host's report change: decisions on what a `Transaction` holds in memory.

A command is decided where it is journalled, so that it is never half-taken; what
is then still to do follows from the difference between wanted and seen alone.
Nothing here waits, and whatever raises does so before it has changed anything.
"""

import hashlib
import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace

from pupitre.cluster import host_commands
from pupitre.cluster.adoption import ENDING, WAITS, Prove, Stance, forget_unknown, meet_unknown
from pupitre.cluster.host_commands import HostOrder
from pupitre.domain import placement
from pupitre.domain.bounds import MOST_GUESTS, time_near
from pupitre.domain.command import (
    BootDesktop,
    CommandKind,
    CommandState,
    ConfigureHost,
    DestroyDesktop,
    Fault,
    Halt,
    desktop_of,
)
from pupitre.domain.desktop import DESKTOP_LIFE, Desktop, DesktopEvent, DesktopState
from pupitre.errors import BootFailure, ConfigurationFault, DestructionFault, Halted
from pupitre.store.cluster_rows import Entry, Placed
from pupitre.store.transaction import Needs, Transaction
from pupitre.wire.messages import Report

# REQUESTED is no news: the host has the order and has yet to begin.
SEEN_EVENTS: dict[DesktopState, DesktopEvent] = {
    DesktopState.PREPARING: DesktopEvent.PREPARE,
    DesktopState.BOOTING: DesktopEvent.START,
    DesktopState.RUNNING: DesktopEvent.RUN,
    DesktopState.STOPPING: DesktopEvent.STOP,
    DesktopState.FAILED: DesktopEvent.FAIL,
    DesktopState.GONE: DesktopEvent.END,
}


MOST_REASON = 1000
"""Characters of what a host gives as a reason."""
IN_DOUBT = (
    "The cluster's database is from the past: was a backup restored?"
    " An administrator has to confirm that it shall go on from there: pupitre cluster confirm"
)


def needs_of(entry: Entry, *, is_new: bool = False) -> Needs:
    """What `accept` and `abandon` have to see. ``is_new``: it has most likely never been journalled."""
    desktop = desktop_of(entry.order)
    new = {entry.id} if is_new else set()
    if is_new and isinstance(entry.order, BootDesktop):
        new.add(entry.order.desktop)
    return Needs(
        commands=frozenset({entry.id}),
        desktops=frozenset({desktop} if desktop else ()),
        host_commands=isinstance(entry.order, HostOrder),
        new=frozenset(new),
    )


def accept(
    transaction: Transaction,
    entry: Entry,
    *,
    now: int,
    overcommit: float,
    notice_ms: int = 0,
    halted: bool = False,
    in_doubt: bool = False,
) -> bool:
    """Journal ``entry`` and decide it; False when it had been journalled before.

    ``notice_ms`` is what users get to save their work before their host goes; ``halted``: nothing is begun any more;
    ``in_doubt``: nothing is begun before an administrator has spoken.
    """
    if held := transaction.entry(entry.id):
        if held.outcome is not None:
            transaction.repeat(entry.id)  # who asks again does not have it, or not any more
        return False
    order = entry.order
    if halted and not isinstance(order, Halt):
        fault = Fault(Halted.code, "The cluster is being halted. Ask again once it runs.")
        entry = replace(entry, outcome=CommandState.CANCELLED, fault=fault)
    elif in_doubt and not isinstance(order, Halt):
        entry = replace(entry, outcome=CommandState.FAILED, fault=Fault(_fault_code(order), IN_DOUBT))
    elif isinstance(order, BootDesktop):
        entry = _place(transaction, entry, order, now=now, overcommit=overcommit)
    elif isinstance(order, DestroyDesktop):
        entry = _want_gone(transaction, entry, order, now=now)
    elif isinstance(order, HostOrder):
        entry = host_commands.decide(transaction, entry, order, now=now, notice_ms=notice_ms)
    transaction.add_entry(entry, now=now)
    return True


def _fault_code(order: object) -> str:
    if isinstance(order, BootDesktop):
        return BootFailure.code
    if isinstance(order, DestroyDesktop):
        return DestructionFault.code
    return ConfigurationFault.code if isinstance(order, ConfigureHost) else host_commands.fault_of(order).code


def abandon(transaction: Transaction, entry: Entry, *, now: int) -> None:
    """Nobody waits for ``entry`` any more: what it made, or would make, shall not be."""
    held = transaction.entry(entry.id)
    if held is None:
        cancelled = replace(entry, outcome=CommandState.CANCELLED)
        transaction.add_entry(cancelled, now=now)
        return
    if held.outcome is None and not isinstance(held.order, DestroyDesktop):
        transaction.finish(held.id, CommandState.CANCELLED)
        host_commands.withdraw(transaction, held)
    if isinstance(held.order, BootDesktop):
        placed = transaction.desktop(held.order.desktop)
        if placed:
            stop(transaction, placed, now=now, reason="its start took too long")


def _place(transaction: Transaction, entry: Entry, order: BootDesktop, *, now: int, overcommit: float) -> Entry:
    def failed(reason: str) -> Entry:
        return replace(entry, outcome=CommandState.FAILED, fault=Fault(BootFailure.code, reason))

    if transaction.desktop(order.desktop):
        return failed("There is a desktop with this id already.")
    image = transaction.image(order.image)
    if image is None:
        return failed(f"No host has the image {order.image} ready.")
    need = placement.Need(image.id, image.memory_mib, image.vcpus, order.edition)
    host = placement.choose(need, transaction.candidates(image.id, overcommit=overcommit))
    if isinstance(host, placement.NoPlace):
        return failed(str(host))
    desktop = Desktop(
        id=order.desktop,
        owner=entry.user,
        image=order.image,
        host=host,
        state=DESKTOP_LIFE.initial,
        since=now,
        created=now,
        boot=1,
    )
    memory = image.memory_mib + transaction.overhead(host, image.id)
    transaction.put_desktop(Placed(desktop, DesktopState.RUNNING, memory, image.vcpus))
    return entry


def _want_gone(transaction: Transaction, entry: Entry, order: DestroyDesktop, *, now: int) -> Entry:
    placed = transaction.desktop(order.desktop)
    if placed is None:
        fault = Fault(DestructionFault.code, "There is no such desktop.")
        return replace(entry, outcome=CommandState.FAILED, fault=fault)
    for boot in transaction.open_entries(order.desktop, CommandKind.BOOT_DESKTOP):
        transaction.finish(boot.id, CommandState.CANCELLED)
    if stop(transaction, placed, now=now, reason=None):
        return replace(entry, outcome=CommandState.SUCCEEDED)
    return entry


def stop(transaction: Transaction, placed: Placed, *, now: int, reason: str | None, until: int | None = None) -> bool:
    """Want the desktop gone; True when nothing is left of it already.

    ``until`` is there when its host is shut down in order: then its guest may take its time to shut down.
    """
    if placed.seen.state is DesktopState.GONE:
        return True
    event = DesktopEvent.STOP if placed.seen.host else DesktopEvent.END
    state = DESKTOP_LIFE.next(placed.seen.state, event)
    since = placed.seen.since if state is placed.seen.state else now
    seen = replace(placed.seen, state=state, since=since, reason=reason, until=until)
    transaction.put_desktop(replace(placed, seen=seen, wanted=DesktopState.GONE))
    return state is DesktopState.GONE


def observe(transaction: Transaction, placed: Placed, event: DesktopEvent, *, reason: str | None, now: int) -> None:
    """Write what a host saw of a desktop, and the outcomes of commands that waited for it."""
    if not DESKTOP_LIFE.allows(placed.seen.state, event):
        return
    desktop = placed.seen.id
    destroying = transaction.open_entries(desktop, CommandKind.DESTROY_DESKTOP)
    if placed.seen.state is DesktopState.FAILED and event is DesktopEvent.END and not destroying:
        # Nothing is left on the host, but its owner has yet to read why it failed.
        transaction.put_desktop(replace(placed, seen=replace(placed.seen, host=None)))
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
    transaction.put_desktop(replace(placed, seen=seen, wanted=wanted))

    booting = transaction.open_entries(desktop, CommandKind.BOOT_DESKTOP)
    if placed.wanted is DesktopState.RUNNING and wanted is DesktopState.GONE and not booting:
        action = "desktop_failed" if state is DesktopState.FAILED else "desktop_ended"
        transaction.note(action, desktop, reason or f"{placed.seen.host} gave no reason.", now=now)
    for entry in booting:
        if state is DesktopState.RUNNING:
            transaction.finish(entry.id, CommandState.SUCCEEDED)
        elif state in (DesktopState.FAILED, DesktopState.GONE):
            why = reason or "It ended before it ran."
            transaction.finish(entry.id, CommandState.FAILED, Fault(BootFailure.code, why))
    for entry in destroying:
        if state is DesktopState.GONE:
            transaction.finish(entry.id, CommandState.SUCCEEDED)
        elif event is DesktopEvent.FAIL:
            why = reason or "The host could not remove it and goes on trying."
            transaction.finish(entry.id, CommandState.FAILED, Fault(DestructionFault.code, why))


@dataclass(frozen=True, slots=True)
class Findings:
    """Of a report: desktops to look at again, and guests that belong to no desktop.

    ``lines`` were noted for the audit log, and ``refused`` were not, since one host may say only so much.
    """

    wake: frozenset[str] = frozenset()
    orphans: frozenset[str] = frozenset()
    lines: int = 0
    refused: int = 0


def report_needs(report: Report) -> Needs:
    """What `apply_report` has to see."""
    return Needs(
        desktops=frozenset(sighting.desktop for sighting in report.desktops),
        hosts=frozenset({report.host} if report.full else ()),
    )


def apply_report(
    transaction: Transaction,
    report: Report,
    *,
    now: int,
    noted: Collection[str] = frozenset(),
    stance: Stance = Stance.USUAL,
    since: int = 0,
    may_note: int = MOST_GUESTS,
    prove: Prove = lambda _: None,
) -> Findings:
    """Write what a host reports of its desktops. Only that host's desktops are touched.

    ``noted`` are guests of this host that the audit log has been told of already. With `Stance.ADOPT`,
    desktops made after ``since`` are not missing yet. No more than ``may_note`` lines are noted on the host's word.
    """
    wake: set[str] = set()
    orphans: set[str] = set()
    lines = refused = 0
    for sighting in report.desktops:
        placed = transaction.desktop(sighting.desktop)
        if placed is None or placed.seen.host != report.host or placed.seen.state is DesktopState.GONE:
            if sighting.state is DesktopState.GONE:
                continue
            if placed is None and meet_unknown(transaction, report.host, sighting, stance, prove, now=now):
                wake.add(sighting.desktop)
            elif stance is not Stance.DOUBT:
                orphans.add(sighting.desktop)
                if sighting.desktop not in noted and lines >= may_note:
                    refused += 1
                elif sighting.desktop not in noted:
                    lines += 1
                    detail = f"{report.host} has it, and no desktop here belongs to it; it is removed."
                    transaction.note("guest_removed", sighting.desktop, detail, now=now)
            continue
        nothing_left = sighting.state is DesktopState.GONE and placed.wanted is DesktopState.GONE
        if sighting.boot < placed.seen.boot and not nothing_left:
            continue
        if event := SEEN_EVENTS.get(sighting.state):
            # Not every database holds a NUL.
            reason = sighting.reason[:MOST_REASON].replace("\0", "") if sighting.reason else None
            observe(transaction, placed, event, reason=reason, now=now)
        wake.add(sighting.desktop)
    if report.full and not any(one.kind == "desktops" for one in report.left_out):
        named = {sighting.desktop for sighting in report.desktops}
        for placed in transaction.desktops_on(report.host):
            if placed.seen.id in named:
                continue
            wake.add(placed.seen.id)
            if stance is not Stance.USUAL:
                _miss(transaction, placed, stance, since=since, now=now)
            elif placed.wanted is DesktopState.GONE:
                observe(transaction, placed, DesktopEvent.END, reason=placed.seen.reason, now=now)
            elif placed.seen.state is not DesktopState.REQUESTED:
                reason = f"{report.host} no longer has this desktop: it was restarted."
                observe(transaction, placed, DesktopEvent.FAIL, reason=reason, now=now)
    forget_unknown(transaction, report)
    for finding in report.findings:
        if lines >= may_note:
            refused += 1
            continue
        lines += 1
        at = time_near(finding.at, now)
        detail = f"{report.host}: {finding.detail}"
        transaction.note(finding.action, finding.desktop, detail, now=at, id=_note_id(report.host, finding.id, at))
    return Findings(frozenset(wake), frozenset(orphans), lines, refused)


def _note_id(host: str, finding: str, at: int) -> str:
    """The same for the same finding, its host's own, and in its place by time whatever the host calls it."""
    random = hashlib.sha256(f"{host} {finding}".encode()).digest()[:10]
    return str(
        uuid.UUID(
            bytes=at.to_bytes(6) + bytes([0x70 | random[0] & 0x0F, random[1], 0x80 | random[2] & 0x3F]) + random[3:]
        )
    )


def _miss(transaction: Transaction, placed: Placed, stance: Stance, *, since: int, now: int) -> None:
    """Its host, which knows more than this database, does not have it."""
    if stance is Stance.DOUBT:
        if placed.seen.state is not DesktopState.LOST and DESKTOP_LIFE.allows(placed.seen.state, DesktopEvent.LOSE):
            observe(transaction, placed, DesktopEvent.LOSE, reason=WAITS, now=now)
    elif placed.seen.created <= since:
        reason = f"It had ended on {placed.seen.host} before the cluster's database was restored."
        observe(transaction, placed, DesktopEvent.END, reason=reason, now=now)
        transaction.note("desktop_ended", placed.seen.id, reason, now=now)


def lose_desktops(transaction: Transaction, host: str, *, now: int) -> None:
    """The host has been silent too long: what runs there may run on, but nobody knows."""
    transaction.note("host_lost", host, "It does not answer; its desktops are lost until it does.", now=now)
    for placed in transaction.desktops_on(host):
        if DESKTOP_LIFE.allows(placed.seen.state, DesktopEvent.LOSE) and placed.seen.state is not DesktopState.LOST:
            reason = f"{host} does not answer"
            observe(transaction, placed, DesktopEvent.LOSE, reason=reason, now=now)
            transaction.note("desktop_lost", placed.seen.id, reason, now=now)
