"""The cluster server's loops: what comes in over NATS, and what goes out until it is taken."""

import asyncio
import time
from dataclasses import replace

import structlog
from prometheus_client import CollectorRegistry, Counter

from pupitre.cluster.decisions import abandon, accept, apply_report, lose_desktops
from pupitre.cluster.hosts import Liveness
from pupitre.config import Settings
from pupitre.domain.command import CommandState, Fault, RegisterHost
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HOST_LIFE, Host, HostEvent
from pupitre.domain.status import Rows
from pupitre.errors import LinkDown, MessageError, RegistrationFault, Unavailable
from pupitre.store.cluster import ClusterStore, Entry
from pupitre.store.engine import Database
from pupitre.wire.link import Link
from pupitre.wire.messages import (
    Abandon,
    AnyMessage,
    Changed,
    Describe,
    Done,
    EnsureDesktop,
    EnsureGone,
    GetPage,
    Heartbeat,
    Hello,
    Mark,
    Outcome,
    Page,
    Report,
    Submit,
)
from pupitre.wire.subjects import Subjects
from pupitre.workers import Workers

log = structlog.get_logger(__name__)

RESEND = 5.0
"""Seconds until an order that had no visible effect is sent again."""
CHUNK = 500
KEEP_MS = 24 * 3600 * 1000
"""How long gone desktops and reported commands are kept."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class ClusterServer:
    def __init__(self, settings: Settings, database: Database, link: Link, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._link = link
        self._subjects = Subjects(settings.cluster)
        self._store = ClusterStore(database, on_change=self._wake)
        self._desktops = Workers(self._settle, retry=1.0)
        self._registrations = Workers(self._register, retry=1.0)
        self._liveness = Liveness(settings.host_timeout, self._host_silent)
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self._epoch = 0
        self._published = 0
        self._taken = Counter("pupitre_cluster_commands", "Commands journalled", ["kind"], registry=registry)

    async def run(self) -> None:
        """Serve until cancelled. The link must be open."""
        self._epoch = await self._store.begin_epoch()
        self._published = await self._store.sequence()
        await self._store.forget(now_ms() - KEEP_MS)
        await self._link.serve(self._subjects.commands, self._on_command)
        await self._link.serve(self._subjects.reports("*"), self._on_report, in_order=True)
        await self._link.serve(self._subjects.heartbeats("*"), self._on_heartbeat)
        for host in await self._store.hosts():
            self._liveness.expect(host.name)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._report_outcomes())
                tasks.create_task(self._publish_changes())
                tasks.create_task(self._publish_marks())
                tasks.create_task(self._liveness.watch())
                await self.resume()
        finally:
            await self._desktops.close()
            await self._registrations.close()

    async def resume(self) -> None:
        """Look at everything again: after a start, and when the broker is back."""
        await self._link.publish(self._subjects.all_hosts, Describe(epoch=self._epoch))
        for desktop in await self._store.unsettled():
            self._desktops.wake(desktop)
        for entry in await self._store.unfinished():
            if isinstance(entry.order, RegisterHost):
                self._registrations.wake(entry.id)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._finished.set()

    # From the endpoint

    async def _on_command(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, Hello):
            return Mark(epoch=self._epoch, sequence=self._published)
        if isinstance(message, GetPage):
            sequence, rows, following = await self._store.page(message.section, message.after)
            return Page(epoch=self._epoch, sequence=sequence, rows=rows, next=following)
        if isinstance(message, Submit):
            await self._submit(message)
            return Done()
        if isinstance(message, Abandon):
            entry = Entry(message.id, message.user, message.order, message.deadline)
            async with self._store.transaction() as transaction:
                await abandon(transaction, entry, now=now_ms())
            self._wake_for(entry)
            return Done()
        raise MessageError(f"The cluster takes no {type(message).__name__} from an endpoint.")

    async def _submit(self, message: Submit) -> None:
        entry = Entry(message.id, message.user, message.order, message.deadline)
        async with self._store.transaction() as transaction:
            new = await accept(transaction, entry, now=now_ms(), overcommit=self._settings.vcpu_overcommit)
        if new:
            self._taken.labels(kind=entry.order.kind).inc()
            log.info("Command taken.", command=entry.id, kind=entry.order.kind)
            self._wake_for(entry)

    def _wake_for(self, entry: Entry) -> None:
        if isinstance(entry.order, RegisterHost):
            self._registrations.wake(entry.id)
        else:
            self._desktops.wake(entry.order.desktop)

    # From hosts

    async def _on_report(self, message: AnyMessage) -> AnyMessage:
        if not isinstance(message, Report):
            raise MessageError(f"The cluster takes no {type(message).__name__} as a report.")
        gap = not message.full and not self._liveness.follows(message.host, message.run, message.number)
        if not await self._take(message):
            return Done()
        if gap:
            self._spawn_describe(message.host)
        return Done()

    async def _on_heartbeat(self, message: AnyMessage) -> None:
        if not isinstance(message, Heartbeat):
            raise MessageError(f"The cluster takes no {type(message).__name__} as a heartbeat.")
        self._liveness.heard(message.host)
        if self._liveness.is_news(message.host, message.run, message.number):
            await self._describe(message.host)

    def _spawn_describe(self, host: str) -> None:
        self._link.spawn(self._describe(host))

    async def _describe(self, host: str) -> None:
        """Ask the host for everything; silence is noticed elsewhere."""
        try:
            report = await self._link.request(self._subjects.orders(host), Describe(epoch=self._epoch), Report)
        except (LinkDown, MessageError) as error:
            log.debug("A host did not describe itself.", host=host, reason=str(error))
            return
        await self._take(report)

    async def _take(self, report: Report) -> bool:
        """Write a report of a registered host; False for any other."""
        now = now_ms()
        async with self._store.transaction() as transaction:
            host = await transaction.host(report.host)
            if host is None:
                return False
            state = HOST_LIFE.next(host.state, HostEvent.REPORT)
            await transaction.put_host(
                replace(
                    host,
                    state=state,
                    since=host.since if state is host.state else now,
                    reason=None,
                    facts=report.facts or host.facts,
                    port=report.port,
                )
            )
            if report.copies is not None:
                await transaction.put_copies(host.name, [(copy.image, copy.spec) for copy in report.copies])
            findings = await apply_report(transaction, report, now=now)
        if state is not host.state:
            log.info("A host is back.", host=host.name)
        self._liveness.heard(report.host)
        if report.full or self._liveness.follows(report.host, report.run, report.number):
            self._liveness.took(report.host, report.run, report.number)
        for desktop in findings.wake:
            self._desktops.wake(desktop)
        for orphan in findings.orphans:
            log.warning("A host has a desktop that nobody wants; it is removed.", host=report.host, desktop=orphan)
            self._link.spawn(self._remove_orphan(report.host, orphan))
        return True

    async def _remove_orphan(self, host: str, desktop: str) -> None:
        order = EnsureGone(epoch=self._epoch, desktop=desktop)
        try:
            await self._link.request(self._subjects.orders(host), order, Done)
        except (LinkDown, MessageError) as error:
            log.warning("An orphan stays for now.", host=host, desktop=desktop, reason=str(error))

    async def _host_silent(self, name: str) -> None:
        now = now_ms()
        async with self._store.transaction() as transaction:
            host = await transaction.host(name)
            if host is None or not HOST_LIFE.allows(host.state, HostEvent.MISS):
                return
            log.warning("A host does not answer; its desktops are lost until it does.", host=name)
            state = HOST_LIFE.next(host.state, HostEvent.MISS)
            await transaction.put_host(replace(host, state=state, since=now, reason="it does not answer"))
            await lose_desktops(transaction, name, now=now)

    # To hosts

    async def _settle(self, desktop: str) -> float | None:
        """One step towards what is wanted of a desktop."""
        placed = await self._store.desktop(desktop)
        if placed is None or placed.seen.host is None or placed.seen.state is DesktopState.GONE:
            return None
        host = placed.seen.host
        order: EnsureDesktop | EnsureGone
        if placed.wanted is DesktopState.GONE:
            order = EnsureGone(epoch=self._epoch, desktop=desktop)
        elif placed.seen.state is DesktopState.REQUESTED:
            spec = await self._store.spec(host, placed.seen.image)
            if spec is None:
                return RESEND
            order = EnsureDesktop(epoch=self._epoch, desktop=desktop, boot=placed.seen.boot, spec=spec)
        else:
            return None
        try:
            await self._link.request(self._subjects.orders(host), order, Done)
        except (LinkDown, MessageError) as error:
            log.warning("A host did not take an order; it is sent again.", host=host, reason=str(error))
            return 1.0
        return RESEND

    async def _register(self, command: str) -> float | None:
        async with self._store.transaction() as transaction:
            entry = await transaction.entry(command)
        if entry is None or entry.outcome is not None or not isinstance(entry.order, RegisterHost):
            return None
        order = entry.order
        fault: Fault | None = None
        report: Report | None = None
        where = f"{order.name} ({order.address}:{order.port})"
        try:
            subject = self._subjects.orders(order.name)
            report = await self._link.request(subject, Describe(epoch=self._epoch), Report, timeout=5)
        except (LinkDown, MessageError) as error:
            reason = f"{where} does not answer: {error} Is `pupitre host` running there under this name?"
            fault = Fault(RegistrationFault.code, reason)
        if report and report.port != order.port:
            reason = f"{where}: its console server says that it listens on port {report.port}."
            fault = Fault(RegistrationFault.code, reason)
        now = now_ms()
        async with self._store.transaction() as transaction:
            if fault is None:
                held = await transaction.host(order.name)
                await transaction.put_host(
                    Host(
                        name=order.name,
                        state=held.state if held else HOST_LIFE.initial,
                        address=order.address,
                        port=order.port,
                        edition=order.edition,
                        since=held.since if held else now,
                        facts=report.facts if report else None,
                    )
                )
            state = CommandState.FAILED if fault else CommandState.SUCCEEDED
            await transaction.finish(entry.id, state, fault)
        if report and not fault:
            await self._take(report)
            log.info("Host registered.", host=order.name)
        return None

    # To the endpoint

    async def _report_outcomes(self) -> None:
        while True:
            await self._finished.wait()
            self._finished.clear()
            pause = 0.25
            while unreported := await self._store.unreported():
                answers = await asyncio.gather(*(self._report_outcome(entry) for entry in unreported))
                taken = [entry.id for entry, answer in zip(unreported, answers, strict=True) if answer]
                if taken:
                    await self._store.reported(taken)
                if len(taken) < len(unreported):
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, RESEND)

    async def _report_outcome(self, entry: Entry) -> bool:
        assert entry.outcome is not None
        rows = Rows()
        if not isinstance(entry.order, RegisterHost):
            placed = await self._store.desktop(entry.order.desktop)
            rows = Rows(desktops=(placed.seen,)) if placed else rows
        outcome = Outcome(id=entry.id, state=entry.outcome, fault=entry.fault, rows=rows)
        try:
            await self._link.request(self._subjects.outcomes, outcome, Done)
        except LinkDown:
            return False
        except MessageError as error:
            log.error("The endpoint cannot read an outcome.", command=entry.id, reason=str(error))
            return False
        return True

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                sequence, rows = await self._store.changes(self._published)
            except Unavailable as error:
                log.warning("Changes are not published yet.", reason=str(error))
                await asyncio.sleep(1)
                self._changed.set()
                continue
            if rows:
                await self._publish(sequence, rows)

    async def _publish(self, sequence: int, rows: Rows) -> None:
        """In messages of bounded size; all but the last leave the reader where it stood."""
        parts = [Rows(hosts=rows.hosts, copies=rows.copies, desktops=rows.desktops[:CHUNK])]
        rest = rows.desktops[CHUNK:]
        parts += [Rows(desktops=rest[start : start + CHUNK]) for start in range(0, len(rest), CHUNK)]
        for part in parts[:-1]:
            await self._link.publish(
                self._subjects.status,
                Changed(epoch=self._epoch, after=self._published, sequence=self._published, rows=part),
            )
        await self._link.publish(
            self._subjects.status,
            Changed(epoch=self._epoch, after=self._published, sequence=sequence, rows=parts[-1]),
        )
        self._published = sequence

    async def _publish_marks(self) -> None:
        while True:
            await self._link.publish(self._subjects.status, Mark(epoch=self._epoch, sequence=self._published))
            await asyncio.sleep(self._settings.status_update_interval)
