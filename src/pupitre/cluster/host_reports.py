"""Reports of hosts: each is written, and what follows from it is woken.

A host is judged by what it says, never by its connection. What a process of a host said before its shutdown notice
does not count any more after it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pupitre.cluster.host_session import HostSession, ReportNumber, SessionEvent
from pupitre.cluster.host_warnings import HostWarnings, Warnings
from pupitre.cluster.image_trust import ImageTrust
from pupitre.cluster.liveness import HostSessions
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HOST_LIFE, HostEvent, HostState
from pupitre.domain.order_proof import Ordered, prove, proven
from pupitre.domain.warning import WarningCode, warn
from pupitre.errors import MessageError, NoAnswer
from pupitre.runtime.clock import now_ms
from pupitre.scheduler import host_life
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.host_commands import READY
from pupitre.scheduler.reports import ReportResult, apply_report, report_read_set
from pupitre.scheduler.restore import SET_ASIDE, WAITS, Prove, ReportPolicy, choose_policy, conflict_warnings
from pupitre.scheduler.state import Copies, ReadSet, is_suspended
from pupitre.store.cluster import ClusterStore
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import AnyMessage, Describe, Done, EnsureGone, Heartbeat, HostShutdownNotice, Report
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Applied:
    """Effect of a report: what it changed, and whether it may be the host's turn for a step."""

    result: ReportResult
    moves: bool
    stale: bool = False
    described: bool = True


class HostReports:
    """``wake_desktop`` and ``wake_host`` have one looked at; ``on_move`` hears of a host that has shut down."""

    def __init__(
        self,
        store: ClusterStore,
        broker: BrokerConnection,
        subjects: Subjects,
        sessions: HostSessions,
        warnings: HostWarnings,
        trust: ImageTrust,
        *,
        key: Ed25519PrivateKey,
        wake_desktop: Callable[[str], None],
        wake_host: Callable[[str], None],
        on_move: Callable[[], None],
    ) -> None:
        self._store = store
        self._broker = broker
        self._subjects = subjects
        self._sessions = sessions
        self._warnings = warnings
        self._trust = trust
        self._key, self._public = key, key.public_key()
        self._wake_desktop = wake_desktop
        self._wake_host = wake_host
        self._on_move = on_move

    async def serve(self) -> None:
        """Begin to hear the hosts."""
        serve = partial(self._broker.serve, due_on=self._due_on, on_refused=self._on_refused)
        await serve(self._subjects.reports("*"), self._on_report, in_order=True)
        await serve(self._subjects.heartbeats("*"), self._on_heartbeat)

    def _due_on(self, message: AnyMessage) -> str | None:
        """A host speaks for itself alone."""
        if isinstance(message, Report | HostShutdownNotice):
            return self._subjects.reports(message.host)
        return self._subjects.heartbeats(message.host) if isinstance(message, Heartbeat) else None

    def _on_refused(self, subject: str, reason: str) -> None:
        """A host said what nobody can read or use: that host is set aside, and nothing else."""
        self._refuse(self._subjects.host_of(subject), reason)

    def _refuse(self, host: str, reason: str) -> None:
        self._broker.spawn(self._warn(host, "reports", (warn(WarningCode.REPORTS_REFUSED, text=reason),)))

    async def _warn(self, host: str, source: str, warnings: Warnings) -> None:
        """Show what ``source`` has found out about a registered host."""

        def write(changes: Changes) -> None:
            if (seen := changes.host(host)) and self._warnings.put(host, source, warnings):
                changes.put_host(replace(seen, warnings=self._warnings.of(host)))

        await self._store.change(write)

    async def _on_report(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, HostShutdownNotice):
            await self._on_shutdown_notice(message)
        elif isinstance(message, Report):
            number = ReportNumber(message.run, message.number)
            gap = not message.full and not self._sessions.get(message.host).follows(number)
            kept = await self.take(message)
            if kept and gap:
                self._broker.spawn(self.describe(message.host))
            return Done(kept=kept)
        else:
            raise MessageError(f"The cluster takes no {type(message).__name__} as a report.")
        return Done()

    async def _on_shutdown_notice(self, message: HostShutdownNotice) -> None:
        session = self._sessions.of(message.host)

        def depart(changes: Changes) -> None:
            # Here, since a report may wait for its turn to be written already.
            session.depart(message.run)
            host_life.record_shutdown(changes, message.host, now=now_ms())

        await self._store.change(depart, ReadSet(hosts=frozenset({message.host}), host_commands=True))
        log.info("host_shut_down", host=message.host)
        session.advance(SessionEvent.STAY)
        session.heard = None
        session.forget_reports()
        self._wake_host(message.host)
        self._on_move()  # its worker may wait for the answer to an order that has died with the host

    async def _on_heartbeat(self, message: AnyMessage) -> None:
        if not isinstance(message, Heartbeat):
            raise MessageError(f"The cluster takes no {type(message).__name__} as a heartbeat.")
        session = self._sessions.of(message.host)
        if session.has_departed(message.run):
            return
        self._sessions.expect(message.host)
        loop_time = asyncio.get_running_loop().time()
        if message.at:
            warnings = session.clock.add(message.at, now=now_ms(), loop_time=loop_time)
            if warnings is not None:
                await self._warn(message.host, "clock", warnings)
        is_due = self._trust.is_due(message.host, loop_time=loop_time)
        if is_due or session.is_new(ReportNumber(message.run, message.number)):
            await self.describe(message.host)

    async def describe(self, host: str) -> None:
        """Ask the host for everything; silence is noticed elsewhere."""
        try:
            report = await self._broker.request(self._subjects.orders(host), Describe(epoch=self._store.epoch), Report)
        except MessageError as error:
            log.warning("host_description_refused", host=host, reason=str(error)[:500])
            self._refuse(host, str(error))
            return
        except NoAnswer as error:
            log.debug("host_description_missing", host=host, reason=str(error))
            return
        if report.host == host:
            await self.take(report)

    async def take(self, report: Report, *, is_new: bool = False) -> bool:
        """Write a report of a registered host; False for any other. ``is_new``: it has just been registered."""
        session, number = self._sessions.of(report.host), ReportNumber(report.run, report.number)
        if session.has_departed(report.run):
            return True  # sent before its shutdown notice
        copies = self._copies_of(report)
        decide = partial(self._write, report=report, session=session, copies=copies, is_new=is_new)
        applied = await self._store.change(decide, report_read_set(report))
        if applied is None:
            return False
        session.add_run(report.run)
        self._sessions.expect(report.host)
        if applied.stale:
            return True  # if anything is missing, the next heartbeat shows it
        if report.full:
            session.advance(SessionEvent.DESCRIBE)
        elif not applied.described:
            self._broker.spawn(self.describe(report.host))
        if report.full or session.follows(number):
            session.mark_applied(number)
        self._follow_up(report, session, applied)
        return True

    def _follow_up(self, report: Report, session: HostSession, applied: _Applied) -> None:
        """Wake what the report has changed; have guests removed that belong to no desktop."""
        result = applied.result
        gone = frozenset(one.desktop for one in report.desktops if one.state is DesktopState.GONE)
        session.note_orphans(result.orphans, gone)
        session.audit.use(result.lines, result.refused)
        for desktop in result.wake:
            self._wake_desktop(desktop)
        for orphan in result.orphans:
            log.warning("orphan_found", host=report.host, desktop=orphan)
            self._broker.spawn(self._remove_orphan(report.host, orphan))
        if applied.moves:
            self._wake_host(report.host)

    def _copies_of(self, report: Report) -> Copies | None:
        """Images that the host is believed to hold; None: as before, until it has shown what it says it holds."""
        if report.copies is None:
            return None
        faults, loop_time = self._trust.learn(report.manifests), asyncio.get_running_loop().time()
        if not report.full and not self._trust.knows(report) and not faults:
            self._broker.spawn(self.describe(report.host))
            return None
        copies, refused = self._trust.copies(report, faults, loop_time=loop_time)
        self._warnings.put(report.host, "images", refused)
        return copies

    def _write(
        self, changes: Changes, report: Report, *, session: HostSession, copies: Copies | None, is_new: bool
    ) -> _Applied | None:
        """A decision: what the report changes; None when its host is not registered."""
        now, registered = now_ms(), changes.hosts.get(report.host)
        if registered is None:
            return None
        number = ReportNumber(report.run, report.number)
        if session.is_stale(number) or session.has_departed(report.run):
            return _Applied(ReportResult(), moves=False, stale=True)
        session.mark_written(number)
        policy, since = self._policy_for(changes, report, session, is_new=is_new, now=now)
        reason = None
        if policy is ReportPolicy.SUSPENDED:
            reason = WAITS if is_suspended(changes.conflicts.values()) else SET_ASIDE
        host, wanted = registered.host, registered.wanted
        if host.state is HostState.SHUT_DOWN:
            wanted = READY  # somebody has switched it on
        state = HOST_LIFE.next(host.state, HostEvent.REPORT if wanted == READY else HostEvent.DRAIN)
        moved = state is not host.state
        if moved:
            log.info("host_answers", host=host.name)
        seen = replace(
            host,
            state=state,
            since=now if moved else host.since,
            reason=reason or (None if wanted == READY else host.reason),
            facts=report.facts or host.facts,
            port=report.port,
            viewer_port=report.viewer_port,
            warnings=self._warnings.report(report),
        )
        changes.put_host(seen, wanted=wanted, drained_by=None if wanted == READY else registered.drained_by)
        if copies is not None:
            changes.put_copies(host.name, copies)
        may_audit = session.audit.left(now=now)
        result = apply_report(
            changes,
            report,
            now=now,
            audited=session.orphans,
            policy=policy,
            since=since,
            may_audit=may_audit,
            prove=self._prover(host.name),
        )
        if (refused := result.refused + session.audit.refused) or may_audit:
            too_many = (warn(WarningCode.TOO_MANY_FINDINGS, refused),) if refused else ()
            self._warnings.put(host.name, "audit limit", too_many)
        self._warnings.put(host.name, "conflict", conflict_warnings(changes, host.name))
        changes.put_host(replace(seen, warnings=self._warnings.of(host.name)))
        pending = changes.conflicts.get(host.name)
        described = pending is None or not pending.confirmed
        return _Applied(result, moves=moved or wanted != READY, described=described)

    def _policy_for(
        self, changes: Changes, report: Report, session: HostSession, *, is_new: bool, now: int
    ) -> tuple[ReportPolicy, int]:
        heard, store = report.heard, self._store
        known = heard is None or session.reconciled == heard or store.knows(heard.epoch, heard.sequence)
        policy, since = choose_policy(
            changes,
            report,
            self._prover(report.host),
            is_new=is_new,
            now=now,
            known=known,
            epoch=store.epoch,
            confirmed=store.state.confirmed,
        )
        if policy is ReportPolicy.ADOPT and heard:
            session.reconciled = heard
        return policy, since

    def _prover(self, host: str) -> Prove:
        return partial(proven, key=self._public, host=host)

    async def _remove_orphan(self, host: str, desktop: str) -> None:
        epoch, sequence = self._store.epoch, self._store.version
        proof = prove(Ordered(host, epoch, sequence, desktop), self._key)
        order = EnsureGone(epoch=epoch, desktop=desktop, sequence=sequence, proof=proof)
        try:
            await self._broker.request(self._subjects.orders(host), order, Done)
        except (NoAnswer, MessageError) as error:
            log.warning("orphan_not_removed", host=host, desktop=desktop, reason=str(error))
