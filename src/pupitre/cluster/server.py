"""The cluster server's loops: what comes in over NATS, and what goes out until it is taken."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog
from prometheus_client import CollectorRegistry, Counter

from pupitre.clock import now_ms
from pupitre.cluster.decisions import (
    Findings,
    abandon,
    accept,
    apply_report,
    lose_desktops,
    needs_of,
    report_needs,
)
from pupitre.cluster.endings import tell_hosts
from pupitre.cluster.hosts import Liveness
from pupitre.cluster.notes import send_notes
from pupitre.config import Settings
from pupitre.domain.command import CommandState, Fault, RegisterHost, desktop_of
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import HOST_LIFE, Host, HostEvent
from pupitre.domain.status import Rows
from pupitre.errors import Deposed, LinkDown, MessageError, RegistrationFault, Unavailable
from pupitre.store.cluster import SECTIONS, ClusterStore
from pupitre.store.transaction import Entry, Needs, Transaction
from pupitre.wire.link import Link
from pupitre.wire.messages import (
    MAX_SIZE,
    Abandon,
    AnyMessage,
    Changed,
    Describe,
    Done,
    EndSignIns,
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
    encode,
)
from pupitre.wire.subjects import Subjects
from pupitre.workers import Workers, persist

log = structlog.get_logger(__name__)

RESEND = 5.0
"""Seconds until an order that had no visible effect is sent again."""
CHUNK = 500
"""Rows in one change."""
SHORTEST = 0.25
"""Seconds until an outcome that was not taken is sent again, at first."""
STAND_BY = 2.0
"""Seconds of silence after which another cluster server is taken over from."""
KEEP_MS = 24 * 3600 * 1000
"""How long gone desktops and reported commands are kept."""


class ClusterServer:
    def __init__(self, settings: Settings, store: ClusterStore, link: Link, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._link = link
        self._subjects = Subjects(settings.cluster)
        self._store = store
        store.on_change = self._wake
        self._desktops = Workers(self._settle, retry=1.0)
        self._registrations = Workers(self._register, retry=1.0)
        self._liveness = Liveness(settings.host_timeout, self._host_silent)
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self._noted = asyncio.Event()
        store.on_note = self._noted.set
        store.on_removal = self._host_removed
        self._orphans: dict[str, frozenset[str]] = {}
        self._epoch = 0
        self._published = 0
        self._removed = False
        self._taken = Counter("pupitre_cluster_commands", "Commands journalled", ["kind"], registry=registry)

    async def run(self, *, on_started: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled. The link must be open. Raises `Deposed` when another cluster server takes over."""
        await self._stand_by()
        self._epoch = await self._store.begin_epoch(now=now_ms())
        self._published = await self._store.sequence()
        await self._store.forget(now_ms() - KEEP_MS)
        await self._link.serve(self._subjects.commands, self._on_command)
        await self._link.serve(self._subjects.reports("*"), self._on_report, in_order=True, due_on=self._due_on)
        await self._link.serve(self._subjects.heartbeats("*"), self._on_heartbeat, due_on=self._due_on)
        for host in await self._store.hosts():
            self._liveness.expect(host.name)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(persist(self._report_outcomes, self._finished, pauses=(SHORTEST, RESEND)))
                tasks.create_task(persist(self._publish_changes, self._changed))
                tasks.create_task(persist(self._send_notes, self._noted, pauses=(SHORTEST, RESEND)))
                tasks.create_task(self._publish_marks())
                tasks.create_task(self._liveness.watch())
                tasks.create_task(self._store.until_deposed())
                self._link.spawn(self.resume())
                on_started()
        except* Deposed as several:
            raise several.exceptions[0] from None
        finally:
            await self._desktops.close()
            await self._registrations.close()

    async def _stand_by(self) -> None:
        """Wait while another cluster server answers; one that is silent is taken over from."""
        said = False
        while True:
            try:
                await self._link.request(self._subjects.commands, Hello(), Mark, timeout=STAND_BY)
            except (LinkDown, MessageError):
                return
            if not said:
                log.info("Another cluster server is at work; this one stands by.")
                said = True
            await asyncio.sleep(STAND_BY)

    async def resume(self) -> None:
        """Look at everything again: after a start, and when the broker is back."""
        await self._link.publish(self._subjects.all_hosts, Describe(epoch=self._epoch))
        while True:
            try:
                unsettled, unfinished = await self._store.unsettled(), await self._store.unfinished()
                break
            except Unavailable as error:
                log.warning("The cluster's database does not answer yet.", reason=str(error))
                await asyncio.sleep(1)
        for desktop in unsettled:
            self._desktops.wake(desktop)
        for entry in unfinished:
            if isinstance(entry.order, RegisterHost):
                self._registrations.wake(entry.id)
        self._wake()
        self._noted.set()

    def _wake(self) -> None:
        self._changed.set()
        self._finished.set()

    # From the endpoint

    async def _on_command(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, Hello):
            return Mark(epoch=self._epoch, sequence=self._published)
        if isinstance(message, GetPage):
            return await self._page(message)
        if isinstance(message, Submit):
            await self._submit(message)
            return Done()
        if isinstance(message, Abandon):
            entry = Entry(message.id, message.user, message.order, message.deadline)
            await self._store.change(needs_of(entry), partial(abandon, entry=entry, now=now_ms()))
            self._wake_for(entry)
            return Done()
        if isinstance(message, EndSignIns):
            hosts = await self._store.hosts()
            return await tell_hosts(self._link, self._subjects, hosts, message.bearers, self._epoch)
        raise MessageError(f"The cluster takes no {type(message).__name__} from an endpoint.")

    async def _page(self, ask: GetPage) -> Page:
        """A page that fits into one message."""
        if ask.section not in SECTIONS:
            raise MessageError(f"There are no pages of {ask.section[:50]!r}.")
        limit = CHUNK
        while True:
            sequence, rows, following = await self._store.page(ask.section, ask.after, limit=limit)
            page = Page(epoch=self._epoch, sequence=sequence, rows=rows, next=following)
            if limit == 1 or len(encode(page)) <= MAX_SIZE:
                return page
            limit = limit // 4 + 1

    async def _submit(self, message: Submit) -> None:
        entry = Entry(message.id, message.user, message.order, message.deadline)
        decide = partial(accept, entry=entry, now=now_ms(), overcommit=self._settings.vcpu_overcommit)
        if await self._store.change(needs_of(entry), decide):
            self._taken.labels(kind=entry.order.kind).inc()
            log.debug("Command taken.", command=entry.id, kind=entry.order.kind)
            self._wake_for(entry)

    def _wake_for(self, entry: Entry) -> None:
        if isinstance(entry.order, RegisterHost):
            self._registrations.wake(entry.id)
        elif desktop := desktop_of(entry.order):
            self._desktops.wake(desktop)

    # From hosts

    def _due_on(self, message: AnyMessage) -> str | None:
        """A host speaks for itself alone."""
        if isinstance(message, Report):
            return self._subjects.reports(message.host)
        return self._subjects.heartbeats(message.host) if isinstance(message, Heartbeat) else None

    async def _on_report(self, message: AnyMessage) -> AnyMessage:
        if not isinstance(message, Report):
            raise MessageError(f"The cluster takes no {type(message).__name__} as a report.")
        gap = not message.full and not self._liveness.follows(message.host, message.run, message.number)
        if await self._take(message) and gap:
            self._link.spawn(self._describe(message.host))
        return Done()

    async def _on_heartbeat(self, message: AnyMessage) -> None:
        if not isinstance(message, Heartbeat):
            raise MessageError(f"The cluster takes no {type(message).__name__} as a heartbeat.")
        self._liveness.heard(message.host)
        if self._liveness.is_news(message.host, message.run, message.number):
            await self._describe(message.host)

    async def _describe(self, host: str) -> None:
        """Ask the host for everything; silence is noticed elsewhere."""
        try:
            report = await self._link.request(self._subjects.orders(host), Describe(epoch=self._epoch), Report)
        except (LinkDown, MessageError) as error:
            log.debug("A host did not describe itself.", host=host, reason=str(error))
            return
        if report.host == host:
            await self._take(report)

    async def _take(self, report: Report) -> bool:
        """Write a report of a registered host; False for any other."""
        taken = await self._store.change(report_needs(report), partial(self._write_report, report=report))
        if taken is None:
            return False
        self._liveness.heard(report.host)
        if report.full or self._liveness.follows(report.host, report.run, report.number):
            self._liveness.took(report.host, report.run, report.number)
        gone = {sighting.desktop for sighting in report.desktops if sighting.state is DesktopState.GONE}
        self._orphans[report.host] = (self._orphans.get(report.host, frozenset()) | taken.orphans) - gone
        for desktop in taken.wake:
            self._desktops.wake(desktop)
        for orphan in taken.orphans:
            log.warning("A host has a desktop that nobody wants; it is removed.", host=report.host, desktop=orphan)
            self._link.spawn(self._remove_orphan(report.host, orphan))
        return True

    def _write_report(self, transaction: Transaction, report: Report) -> Findings | None:
        """A decision: what the report changes; None when its host is not registered."""
        now, host = now_ms(), transaction.host(report.host)
        if host is None:
            return None
        if self._liveness.is_stale(report.host, report.run, report.number):
            return Findings()  # what it says, and more, is known
        state = HOST_LIFE.next(host.state, HostEvent.REPORT)
        if state is not host.state:
            log.info("A host is there.", host=host.name)
        transaction.put_host(
            replace(
                host,
                state=state,
                since=host.since if state is host.state else now,
                reason=None,
                facts=report.facts or host.facts,
                port=report.port,
                viewer_port=report.viewer_port,
            )
        )
        if report.copies is not None:
            transaction.put_copies(host.name, [(copy.image, copy.spec) for copy in report.copies])
        return apply_report(transaction, report, now=now, noted=self._orphans.get(report.host, frozenset()))

    async def _remove_orphan(self, host: str, desktop: str) -> None:
        order = EnsureGone(epoch=self._epoch, desktop=desktop)
        try:
            await self._link.request(self._subjects.orders(host), order, Done)
        except (LinkDown, MessageError) as error:
            log.warning("An orphan stays for now.", host=host, desktop=desktop, reason=str(error))

    async def _host_silent(self, name: str) -> None:
        def silent(transaction: Transaction) -> None:
            now, host = now_ms(), transaction.host(name)
            if host is None or not HOST_LIFE.allows(host.state, HostEvent.MISS):
                return
            log.warning("A host does not answer; its desktops are lost until it does.", host=name)
            state = HOST_LIFE.next(host.state, HostEvent.MISS)
            transaction.put_host(replace(host, state=state, since=now, reason="it does not answer"))
            lose_desktops(transaction, name, now=now)

        await self._store.change(Needs(hosts=frozenset({name})), silent)

    # To hosts

    async def _settle(self, desktop: str) -> float | None:
        """One step towards what is wanted of a desktop."""
        found = await self._store.look(desktop)
        if found is None:
            return None
        placed, spec = found
        if placed.seen.host is None or placed.seen.state is DesktopState.GONE:
            return None
        host = placed.seen.host
        order: EnsureDesktop | EnsureGone
        if placed.wanted is DesktopState.GONE:
            order = EnsureGone(epoch=self._epoch, desktop=desktop)
        elif placed.seen.state is DesktopState.REQUESTED:
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
        entry = await self._store.entry(command)
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
        if report and report.host != order.name:
            fault = Fault(RegistrationFault.code, f"{where}: it says that its name is {report.host}.")
        elif report and report.port != order.port:
            reason = f"{where}: its console server says that it listens on port {report.port}."
            fault = Fault(RegistrationFault.code, reason)

        def decide(transaction: Transaction) -> bool:
            now, held = now_ms(), transaction.entry(entry.id)
            if held is None or held.outcome is not None:
                return False  # abandoned meanwhile
            if fault is None:
                known = transaction.host(order.name)
                transaction.put_host(
                    Host(
                        name=order.name,
                        state=known.state if known else HOST_LIFE.initial,
                        address=order.address,
                        port=order.port,
                        edition=order.edition,
                        since=known.since if known else now,
                        facts=report.facts if report else None,
                        label=known.label if known else "",
                        mac=order.mac,
                    )
                )
            transaction.finish(entry.id, CommandState.FAILED if fault else CommandState.SUCCEEDED, fault)
            return fault is None

        if await self._store.change(Needs(commands=frozenset({entry.id})), decide) and report:
            await self._take(report)
            log.info("Host registered.", host=order.name)
        return None

    # To the endpoint

    async def _report_outcomes(self) -> bool:
        """Report the oldest of the outcomes that wait; True when all of them are taken."""
        sequence, unreported = await self._store.unreported()
        answers = await asyncio.gather(*(self._report_outcome(sequence, *one) for one in unreported))
        taken = [entry.id for (entry, _), answer in zip(unreported, answers, strict=True) if answer]
        if taken:
            await self._store.reported(taken)
            self._finished.set()  # there may be more than one page of them
        return len(taken) == len(unreported)

    async def _report_outcome(self, sequence: int, entry: Entry, desktop: Desktop | None) -> bool:
        assert entry.outcome is not None
        outcome = Outcome(
            id=entry.id,
            state=entry.outcome,
            fault=entry.fault,
            rows=Rows(desktops=(desktop,)) if desktop else Rows(),
            epoch=self._epoch,
            sequence=sequence,
        )
        try:
            await self._link.request(self._subjects.outcomes, outcome, Done)
        except LinkDown:
            return False
        except MessageError as error:
            # Sending it again would not help; the endpoint ends the command by its time-out.
            log.error("The endpoint refuses an outcome.", command=entry.id, reason=str(error))
        return True

    async def _send_notes(self) -> bool:
        return await send_notes(self._store, self._link, self._subjects)

    async def _publish_changes(self) -> bool:
        removed, self._removed = self._removed, False
        try:
            sequence, rows = await self._store.changes(self._published)
        except Unavailable:
            self._removed |= removed
            raise
        if rows or removed:
            await self._publish(sequence, rows, removed=removed)
        return True

    async def _publish(self, sequence: int, rows: Rows, *, removed: bool) -> None:
        """One message; for more than fits into one, or a removal, a mark: it has the reader ask for pages."""
        news: Changed | Mark = Changed(epoch=self._epoch, after=self._published, sequence=sequence, rows=rows)
        many = len(rows.hosts) + len(rows.copies) + len(rows.desktops) > CHUNK
        if removed or many or len(encode(news)) > MAX_SIZE:
            news = Mark(epoch=self._epoch, sequence=sequence)
        self._published = sequence
        await self._link.publish(self._subjects.status, news)

    def _host_removed(self) -> None:
        self._removed = True

    async def _publish_marks(self) -> None:
        while True:
            await self._link.publish(self._subjects.status, Mark(epoch=self._epoch, sequence=self._published))
            await asyncio.sleep(self._settings.status_update_interval)
