"""Reports: what one of a host changes. Only that host's desktops are touched."""

import hashlib
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from pupitre.domain.bounds import MOST_GUESTS, time_near
from pupitre.domain.desktop import DESKTOP_LIFE, DesktopEvent, DesktopState
from pupitre.domain.report import HostReport
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import observe
from pupitre.scheduler.restore import WAITS, Prove, ReportPolicy, forget_unknown_guests, take_unknown_guest
from pupitre.scheduler.state import PlacedDesktop, ReadSet

# REQUESTED says nothing new: the host has the command and has yet to begin.
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


@dataclass(frozen=True, slots=True)
class ReportResult:
    """Result of a report: desktops to look at again, and guests that belong to no desktop.

    ``lines`` went to the audit log, and ``refused`` did not, since one host may say only so much.
    """

    wake: frozenset[str] = frozenset()
    orphans: frozenset[str] = frozenset()
    lines: int = 0
    refused: int = 0


def report_read_set(report: HostReport) -> ReadSet:
    """Read set of `apply_report`."""
    return ReadSet(
        desktops=frozenset(reported.desktop for reported in report.desktops),
        hosts=frozenset({report.host} if report.full else ()),
    )


def apply_report(
    changes: Changes,
    report: HostReport,
    *,
    now: int,
    audited: Collection[str] = frozenset(),
    policy: ReportPolicy = ReportPolicy.NORMAL,
    since: int = 0,
    may_audit: int = MOST_GUESTS,
    prove: Prove = lambda _: None,
) -> ReportResult:
    """Write what a host reports of its desktops. Only that host's desktops are touched.

    ``audited`` are guests of this host that the audit log has been told of already. With `ReportPolicy.ADOPT`,
    desktops made after ``since`` are not missing yet. No more than ``may_audit`` lines go there on the host's word.
    """
    wake: set[str] = set()
    orphans: set[str] = set()
    lines = refused = 0
    for reported in report.desktops:
        placed = changes.desktop(reported.desktop)
        if placed is None or placed.seen.host != report.host or placed.seen.state is DesktopState.GONE:
            if reported.state is DesktopState.GONE:
                continue
            if placed is None and take_unknown_guest(changes, report.host, reported, policy, prove, now=now):
                wake.add(reported.desktop)
            elif policy is not ReportPolicy.SUSPENDED:
                orphans.add(reported.desktop)
                if reported.desktop not in audited and lines >= may_audit:
                    refused += 1
                elif reported.desktop not in audited:
                    lines += 1
                    detail = f"{report.host} has it, and no desktop here belongs to it; it is removed."
                    changes.audit("guest_removed", reported.desktop, detail, now=now)
            continue
        nothing_left = reported.state is DesktopState.GONE and placed.wanted is DesktopState.GONE
        if reported.boot < placed.seen.boot and not nothing_left:
            continue
        if event := SEEN_EVENTS.get(reported.state):
            # Not every database holds a NUL.
            reason = reported.reason[:MOST_REASON].replace("\0", "") if reported.reason else None
            observe(changes, placed, event, reason=reason, now=now)
        wake.add(reported.desktop)
    if report.full and not any(one.kind == "desktops" for one in report.left_out):
        named = {reported.desktop for reported in report.desktops}
        for placed in changes.desktops_on(report.host):
            if placed.seen.id in named:
                continue
            wake.add(placed.seen.id)
            if policy is not ReportPolicy.NORMAL:
                _lose_or_end(changes, placed, policy, since=since, now=now)
            elif placed.wanted is DesktopState.GONE:
                observe(changes, placed, DesktopEvent.END, reason=placed.seen.reason, now=now)
            elif placed.seen.state is not DesktopState.REQUESTED:
                reason = f"{report.host} no longer has this desktop: it was restarted."
                observe(changes, placed, DesktopEvent.FAIL, reason=reason, now=now)
    forget_unknown_guests(changes, report)
    for finding in report.findings:
        if lines >= may_audit:
            refused += 1
            continue
        lines += 1
        at = time_near(finding.at, now)
        detail = f"{report.host}: {finding.detail}"
        changes.audit(finding.action, finding.desktop, detail, now=at, id=_event_id(report.host, finding.id, at))
    return ReportResult(frozenset(wake), frozenset(orphans), lines, refused)


def _event_id(host: str, finding: str, at: int) -> str:
    """Id of an audit event: the same for the same finding of a host, and in order of time."""
    random = hashlib.sha256(f"{host} {finding}".encode()).digest()[:10]
    return str(
        uuid.UUID(
            bytes=at.to_bytes(6) + bytes([0x70 | random[0] & 0x0F, random[1], 0x80 | random[2] & 0x3F]) + random[3:]
        )
    )


def _lose_or_end(changes: Changes, placed: PlacedDesktop, policy: ReportPolicy, *, since: int, now: int) -> None:
    """End a desktop that its host, which knows more than this database, does not have."""
    if policy is ReportPolicy.SUSPENDED:
        if placed.seen.state is not DesktopState.LOST and DESKTOP_LIFE.allows(placed.seen.state, DesktopEvent.LOSE):
            observe(changes, placed, DesktopEvent.LOSE, reason=WAITS, now=now)
    elif placed.seen.created <= since:
        reason = f"It had ended on {placed.seen.host} before the cluster's database was restored."
        observe(changes, placed, DesktopEvent.END, reason=reason, now=now)
        changes.audit("desktop_ended", placed.seen.id, reason, now=now)
