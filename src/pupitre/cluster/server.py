"""The cluster server's loops: what comes in over NATS, and what goes out until it is taken."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry, Counter

from pupitre.cluster.audit_events import send_audit_events
from pupitre.cluster.change_publisher import MOST_ROWS, ChangePublisher
from pupitre.cluster.hosts import Hosts
from pupitre.cluster.outcomes import OutcomeReporter
from pupitre.cluster.revocations import tell_hosts
from pupitre.cluster.shutdown import ClusterShutdown
from pupitre.config import Settings
from pupitre.domain.command import Halt, desktop_of
from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import ImageSpec
from pupitre.domain.order_proof import Ordered, prove
from pupitre.errors import Deposed, MessageError, NoAnswer, Unavailable
from pupitre.pki.signing import public_half
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import Workers, retry_loop, retry_until_available, ungrouped
from pupitre.scheduler.commands import abandon, accept, read_set_of
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop
from pupitre.store.cluster import SECTIONS, ClusterStore, Committed
from pupitre.timings import CONFIRMATION_POLL, KEEP_MS, ORDER_RESEND, ORDER_RETRY, REPORT_RESEND, STAND_BY
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import (
    MAX_SIZE,
    Abandon,
    AnyMessage,
    Done,
    EnsureDesktop,
    EnsureGone,
    GetPage,
    Page,
    RevokeSessions,
    StatusPosition,
    StatusQuery,
    Submit,
    encode,
)
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)


class _Halted(Exception):
    """Ends the loops."""


class ClusterServer:
    """Loops of the cluster server: commands come in, orders go to hosts, outcomes and changes to the endpoint."""

    def __init__(
        self,
        settings: Settings,
        store: ClusterStore,
        broker: BrokerConnection,
        registry: CollectorRegistry,
        key: Ed25519PrivateKey,
    ) -> None:
        """``key`` signs what is ordered of hosts."""
        self._key = key
        self._settings = settings
        self._broker = broker
        self._subjects = Subjects(settings.cluster)
        self._store = store
        store.on_commit, store.on_unsure = self._on_commit, self._on_unsure
        self._desktops = Workers(self._settle)
        self._hosts = Hosts(
            settings,
            store,
            broker,
            key=key,
            registry=registry,
            wake_desktop=self._desktops.wake,
            on_move=self._host_moved,
        )
        self._shutdown = ClusterShutdown(store, self._hosts)
        self._outcomes = OutcomeReporter(store, broker, self._subjects)
        self._changes = ChangePublisher(store, broker, self._subjects)
        self._audit_due = asyncio.Event()
        self._taken = Counter("pupitre_cluster_commands", "Commands journalled", ["kind"], registry=registry)

    async def run(self, *, on_started: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled or halted. The connection to the broker must be open.

        Raises `Deposed` when another cluster server takes over.
        """
        await self._stand_by()
        await retry_until_available(self._begin)
        await self._broker.serve(self._subjects.commands, self._on_command)
        await self._hosts.serve()
        try:
            with contextlib.suppress(_Halted), ungrouped(Deposed, _Halted):
                await self._serve(on_started)
        finally:
            await self._desktops.close()
            await self._hosts.close()

    async def _serve(self, on_started: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(retry_loop(self._report_outcomes, self._outcomes.due, pauses=REPORT_RESEND))
            tasks.create_task(retry_loop(self._changes.publish, self._changes.due))
            tasks.create_task(retry_loop(self._send_audit_events, self._audit_due, pauses=REPORT_RESEND))
            tasks.create_task(self._changes.publish_positions(self._settings.status_update_interval))
            tasks.create_task(self._hosts.watch())
            tasks.create_task(self._watch_confirmation())
            tasks.create_task(self._wait_until_halted())
            tasks.create_task(self._store.until_deposed())
            self._broker.spawn(self.resume())
            on_started()

    async def _begin(self) -> None:
        await self._store.begin_epoch(now=now_ms(), order_key=public_half(self._key))
        self._changes.published = await self._store.sequence()
        await self._store.forget(now_ms() - KEEP_MS)

    @property
    def leads(self) -> bool:
        """Whether it has begun its epoch: until then it has nothing to say."""
        return self._store.epoch > 0

    async def _wait_until_halted(self) -> None:
        await self._shutdown.run()
        raise _Halted

    async def _watch_confirmation(self) -> None:
        """Go on once an administrator has said that the database may be from the past."""
        while True:
            await asyncio.sleep(CONFIRMATION_POLL)
            if not self._store.state.waits_for_confirmation:
                continue
            try:
                waits = await self._store.reload_conflicts()
            except Unavailable as error:
                log.warning("database_away", reason=str(error))
                continue
            if not waits:
                log.info("restore_confirmed")
                await self.resume()

    def _host_moved(self) -> None:
        self._shutdown.moved.set()

    async def _stand_by(self) -> None:
        """Wait while another cluster server answers; one that is silent is taken over from."""
        said = False
        while True:
            try:
                await self._broker.request(self._subjects.commands, StatusQuery(), StatusPosition, timeout=STAND_BY)
            except (NoAnswer, MessageError):
                return
            if not said:
                log.info("standing_by", reason="another cluster server is at work")
                said = True
            await asyncio.sleep(STAND_BY)

    async def resume(self) -> None:
        """Look at everything again: after a start, and when the broker is back."""
        unsettled, unfinished = await retry_until_available(self._unfinished)
        for desktop in unsettled:
            self._desktops.wake(desktop)
        if any(isinstance(command.order, Halt) for command in unfinished):
            self._begin_shutdown()
        self._wake()

    async def _unfinished(self) -> tuple[list[str], list[JournaledCommand]]:
        """Desktops and commands that are under way; those about hosts have been taken up."""
        unsettled, unfinished = await self._store.unsettled(), await self._store.unfinished()
        await self._hosts.resume(unfinished)
        return unsettled, unfinished

    def _wake(self) -> None:
        """Look at the database again for all there is to tell."""
        self._changes.read_all()
        self._outcomes.read_all()
        self._audit_due.set()

    def _on_commit(self, committed: Committed) -> None:
        self._changes.add(committed)
        self._outcomes.add(committed.version, committed.outcomes)
        if committed.audit_events:
            self._audit_due.set()

    def _on_unsure(self) -> None:
        log.warning("commit_unsure")
        self._broker.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        await retry_until_available(self._store.catch_up)
        self._changes.read_all(removals=True)
        await self.resume()

    def _begin_shutdown(self) -> None:
        self._outcomes.halting = True
        self._shutdown.begin()

    # From the endpoint

    async def _on_command(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, StatusQuery):
            return self._changes.position
        if isinstance(message, GetPage):
            return await self._page(message)
        if isinstance(message, Submit):
            await self._submit(message)
            return Done()
        if isinstance(message, Abandon):
            command = JournaledCommand(message.id, message.user, message.order, message.deadline)
            await self._store.change(partial(abandon, command=command, now=now_ms()), read_set_of(command))
            await self._wake_for(command)
            return Done()
        if isinstance(message, RevokeSessions):
            hosts = await self._store.hosts()
            return await tell_hosts(self._broker, self._subjects, hosts, message.bearers, self._store.epoch)
        raise MessageError(f"The cluster takes no {type(message).__name__} from an endpoint.")

    async def _page(self, ask: GetPage) -> Page:
        """A page that fits into one message."""
        if ask.section not in SECTIONS:
            raise MessageError(f"There are no pages of {ask.section[:50]!r}.")
        limit = MOST_ROWS
        while True:
            sequence, rows, following = await self._store.page(ask.section, ask.after, limit=limit)
            page = Page(epoch=self._store.epoch, sequence=sequence, rows=rows, next=following)
            if limit == 1 or len(encode(page)) <= MAX_SIZE:
                return page
            limit = limit // 4 + 1

    async def _submit(self, message: Submit) -> None:
        command = JournaledCommand(message.id, message.user, message.order, message.deadline)
        decide = partial(
            accept,
            command=command,
            now=now_ms(),
            overcommit=self._settings.vcpu_overcommit,
            notice_ms=int(self._settings.drain_notice * 1000),
            halted=self._shutdown.has_begun,
            suspended=self._store.state.is_suspended,
        )
        if await self._store.change(decide, read_set_of(command, is_new=True)):
            self._taken.labels(kind=command.order.kind).inc()
            log.debug("command_journalled", command=command.id, kind=command.order.kind)
        # One that comes again too: it may have been committed, and the answer of the database lost.
        await self._wake_for(command)

    async def _wake_for(self, command: JournaledCommand) -> None:
        if desktop := desktop_of(command.order):
            self._desktops.wake(desktop)
        elif isinstance(command.order, Halt):
            self._begin_shutdown()
        else:
            await self._hosts.take_up(command)

    # To hosts

    async def _settle(self, desktop: str) -> float | None:
        """One step towards what is wanted of a desktop."""
        found = await self._store.placed_desktop(desktop)
        if found is None:
            return None
        placed, spec = found
        if placed.seen.host is None or placed.seen.state is DesktopState.GONE:
            return None
        host, sequence = placed.seen.host, self._store.version
        if not self._hosts.takes_orders(host):
            return ORDER_RESEND
        order: EnsureDesktop | EnsureGone
        if placed.wanted is DesktopState.GONE:
            grace = self._settings.shutdown_grace if placed.seen.until else 0
            proof = prove(Ordered(host, self._store.epoch, sequence, desktop), self._key)
            order = EnsureGone(epoch=self._store.epoch, desktop=desktop, grace=grace, sequence=sequence, proof=proof)
        elif placed.seen.state is DesktopState.REQUESTED:
            if spec is None:
                return ORDER_RESEND
            order = EnsureDesktop(
                epoch=self._store.epoch,
                desktop=desktop,
                boot=placed.seen.boot,
                spec=spec,
                sequence=sequence,
                owner=placed.seen.owner,
                proof=prove(self._ordered(placed, spec, host, sequence), self._key),
            )
        else:
            return None
        try:
            await self._broker.request(self._subjects.orders(host), order, Done)
        except (NoAnswer, MessageError) as error:
            log.warning("order_not_taken", host=host, reason=str(error))
            return ORDER_RETRY
        return ORDER_RESEND

    def _ordered(self, placed: PlacedDesktop, spec: ImageSpec, host: str, sequence: int) -> Ordered:
        """Parts of a start that are signed."""
        seen, memory, vcpus = placed.seen, placed.memory_mib, placed.vcpus
        start = (seen.id, seen.boot, seen.owner, seen.image, spec.disk, memory, vcpus)
        return Ordered(host, self._store.epoch, sequence, *start)

    # To the endpoint

    async def _report_outcomes(self) -> bool:
        all_taken = await self._outcomes.report()
        self._shutdown.moved.set()
        return all_taken

    async def _send_audit_events(self) -> bool:
        return await send_audit_events(self._store, self._broker, self._subjects)
