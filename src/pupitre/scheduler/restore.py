"""Restored databases: hosts that know more than the cluster, what waits for an administrator, what is adopted.

One host's mere word sets that host aside. The cluster as a whole waits for an administrator when two say so, or one
proves it by an order that the cluster's own key signed. Adopted is what that key has signed for the very host; every
other guest there is named, and left as it is.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.order_proof import Ordered
from pupitre.domain.report import DesktopReport, HostReport
from pupitre.domain.warning import HostWarning, WarningCode, warn
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import ENDING
from pupitre.scheduler.state import PlacedDesktop, RestoreConflict, UnknownGuest, is_suspended

WAITS = "waits for an administrator's word: the cluster's database is from the past (pupitre cluster confirm)"
SET_ASIDE = "it says that it knows more than the cluster's database; nothing starts there (pupitre cluster confirm)"

Prove = Callable[[str], Ordered | None]
"""What the cluster's key has signed for the host of a report, by its proof; None where it has not."""


class ReportPolicy(Enum):
    """Policy for a report: NORMAL, or one for a host that knows more than this database.

    SUSPENDED: nothing that is unknown or missing has any consequence. ADOPT: what the cluster's key has signed is taken
    over as it is, and what is missing is gone.
    """

    NORMAL = "normal"
    SUSPENDED = "suspended"
    ADOPT = "adopt"


def choose_policy(
    changes: Changes,
    report: HostReport,
    prove: Prove,
    *,
    is_new: bool,
    now: int,
    known: bool,
    epoch: int,
    confirmed: int,
) -> tuple[ReportPolicy, int]:
    """Policy for this report, and since when its host knows more than this database (Unix ms, or 0).

    ``known``: what it has heard of is all here. Of epochs before ``confirmed`` an administrator has spoken; ``epoch``
    is the present one.
    """
    host, heard = report.host, report.heard
    if heard and not known:
        ordered = prove(heard.proof)
        is_proven = ordered is not None and (ordered.epoch, ordered.sequence) == (heard.epoch, heard.sequence)
        conflict = changes.conflicts.get(host)
        if conflict is None:
            if is_new:  # whoever registers a host has said that it belongs here
                changes.confirmed_before = max(changes.confirmed_before, min(heard.epoch + 1, epoch))
            conflict = RestoreConflict(now, is_new or heard.epoch < confirmed, is_proven)
            changes.conflicts[host] = conflict
            if not conflict.confirmed:
                shown = "shows an order of the cluster" if is_proven else "says that it has heard of changes"
                detail = f"{host} {shown} that is not in the cluster's database: is it from the past?"
                changes.audit("database_restored", host, detail, now=now)
        elif is_proven and not conflict.proven:
            changes.conflicts[host] = replace(conflict, proven=True)
    mine = changes.conflicts.get(host)
    if is_suspended(changes.conflicts.values()):
        return ReportPolicy.SUSPENDED, 0
    if mine is None:
        return ReportPolicy.NORMAL, 0
    if not mine.confirmed or not report.full:
        return ReportPolicy.SUSPENDED, 0
    del changes.conflicts[host]
    return ReportPolicy.ADOPT, mine.since


def take_unknown_guest(
    changes: Changes, host: str, reported: DesktopReport, policy: ReportPolicy, prove: Prove, *, now: int
) -> bool:
    """A guest that no row knows is taken over, or named and left; False where it is nobody's and may go."""
    key = (host, reported.desktop)
    if policy is ReportPolicy.NORMAL:
        return key in changes.unknown_guests
    seen = changes.unknown_guests.get(key)
    if seen and policy is ReportPolicy.SUSPENDED and seen.boot == reported.boot:
        changes.unknown_guests[key] = replace(seen, state=reported.state)
        return True  # its proof was looked at before
    ordered = prove(reported.proof)
    if ordered is None or (ordered.desktop, ordered.boot) != (reported.desktop, reported.boot) or not ordered.image:
        ordered = None
    if ordered and policy is ReportPolicy.ADOPT and _fits(changes, host, ordered):
        _adopt(changes, host, reported, ordered, now=now)
        changes.unknown_guests.pop(key, None)
        return True
    if ordered is None and policy is ReportPolicy.ADOPT:
        detail = f"{host} has it, this database had not, and the cluster's key has not signed it: it is left as it is."
        changes.audit("guest_left", reported.desktop, detail, now=now)
    changes.unknown_guests[key] = UnknownGuest(
        host,
        reported.desktop,
        reported.boot,
        reported.state,
        owner=ordered.owner if ordered else reported.owner,
        image=ordered.image if ordered else reported.image,
        proven=ordered is not None,
    )
    return True


def forget_unknown_guests(changes: Changes, report: HostReport) -> None:
    """Guests that are gone need not be left as they are any more."""
    gone = {one.desktop for one in report.desktops if one.state is DesktopState.GONE}
    named = {one.desktop for one in report.desktops}
    for host, desktop in list(changes.unknown_guests):
        if host == report.host and (desktop in gone or (report.full and desktop not in named)):
            del changes.unknown_guests[host, desktop]


def conflict_warnings(changes: Changes, host: str) -> tuple[HostWarning, ...]:
    """Warnings about the host's guests that the cluster does not know."""
    if host in changes.conflicts:
        return (warn(WarningCode.KNOWS_MORE),)
    left = sum(1 for of, _ in changes.unknown_guests if of == host)
    return (warn(WarningCode.GUESTS_LEFT, left),) if left else ()


def _fits(changes: Changes, host: str, ordered: Ordered) -> bool:
    """Whether the host has room for it by the books."""
    command = changes.hosts.get(host)
    most = command.host.facts.memory_mib if command and command.host.facts else 0
    return command is not None and command.used_memory_mib + ordered.memory_mib <= most


def _adopt(changes: Changes, host: str, reported: DesktopReport, ordered: Ordered, *, now: int) -> None:
    """A desktop that this database has lost goes on as its owner's, as it was ordered."""
    desktop = Desktop(
        id=ordered.desktop,
        owner=ordered.owner,
        image=ordered.image,
        host=host,
        state=reported.state,
        since=now,
        created=now,
        reason="It was taken over as it ran.",
        boot=ordered.boot,
    )
    wanted = DesktopState.GONE if reported.state in ENDING else DesktopState.RUNNING
    memory = ordered.memory_mib + changes.overhead(host, ordered.image)
    changes.put_desktop(PlacedDesktop(desktop, wanted, memory, ordered.vcpus))
    detail = f"{host} has it, this database had not; taken over for {desktop.owner}."
    changes.audit("guest_adopted", desktop.id, detail, now=now)
