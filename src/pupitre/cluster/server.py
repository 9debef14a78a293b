"""The cluster server's loops: what comes in over NATS, and what goes out until it is taken."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry, Counter

from pupitre.cluster.audit_events import send_notes
from pupitre.cluster.committed_changes import joined
from pupitre.cluster.hosts import Hosts
from pupitre.cluster.revocations import tell_hosts
from pupitre.cluster.shutdown import Halting
from pupitre.config import Settings
from pupitre.domain.command import Halt, desktop_of
from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import ImageSpec
from pupitre.domain.order_proof import Ordered, prove
from pupitre.domain.status import Rows
from pupitre.errors import Deposed, LinkDown, MessageError, Unavailable
from pupitre.pki.signing import public_half
from pupitre.runtime.batch import GATHER
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import Workers, persist, ungrouped, until_available
from pupitre.scheduler.commands import abandon, accept, read_set_of
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop
from pupitre.store.cluster import SECTIONS, ClusterStore, Committed
from pupitre.wire.connection import Link
from pupitre.wire.messages import (
    MAX_SIZE,
    Abandon,
    AnyMessage,
    Changed,
    Done,
    EndSignIns,
    EnsureDesktop,
    EnsureGone,
    GetPage,
    Hello,
    Mark,
    Outcome,
    Page,
    Submit,
    encode,
)
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)

GATHER_CHANGES = 0.03
"""Seconds in which changes of desktops gather before they are told. Outcomes do not wait, and bring their rows."""
RESEND = 5.0
"""Seconds until an order that had no visible effect is sent again."""
CHUNK = 500
"""Rows in one change."""
SHORTEST = 0.25
"""Seconds until an outcome that was not taken is sent again, at first."""
STAND_BY = 2.0
"""Seconds of silence after which another cluster server is taken over from."""
LOOK_AT_DOUBTS = 1.0
"""Seconds between two looks whether an administrator has confirmed a restored database."""
KEEP_MS = 24 * 3600 * 1000
"""How long gone desktops and reported commands are kept."""


class _Halted(Exception):
    """Ends the loops."""


class ClusterServer:
    def __init__(
        self,
        settings: Settings,
        store: ClusterStore,
        link: Link,
        registry: CollectorRegistry,
        key: Ed25519PrivateKey,
    ) -> None:
        """``key`` signs what is ordered of hosts."""
        self._key = key
        self._settings = settings
        self._link = link
        self._subjects = Subjects(settings.cluster)
        self._store = store
        store.on_commit, store.on_unsure = self._on_commit, self._on_unsure
        self._committed: list[Committed] = []
        # Outcomes that were just written; all of them are to be read where some may be missing here.
        self._ended: list[tuple[int, JournaledCommand, Rows]] = []
        self._all_outcomes = True
        self._desktops = Workers(self._settle, retry=1.0)
        self._hosts = Hosts(
            settings,
            store,
            link,
            key=key,
            registry=registry,
            wake_desktop=self._desktops.wake,
            on_move=self._host_moved,
        )
        self._halting = Halting(store, self._hosts)
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()
        self._noted = asyncio.Event()
        self._epoch = 0
        self._published = 0
        self._removed = False
        self._taken = Counter("pupitre_cluster_commands", "Commands journalled", ["kind"], registry=registry)

    async def run(self, *, on_started: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled or halted. The link must be open.

        Raises `Deposed` when another cluster server takes over.
        """
        await self._stand_by()
        await until_available(self._begin)
        await self._link.serve(self._subjects.commands, self._on_command)
        await self._hosts.serve()
        try:
            with contextlib.suppress(_Halted), ungrouped(Deposed, _Halted):
                await self._serve(on_started)
        finally:
            await self._desktops.close()
            await self._hosts.close()

    async def _serve(self, on_started: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(persist(self._report_outcomes, self._finished, pauses=(SHORTEST, RESEND)))
            tasks.create_task(persist(self._publish_changes, self._changed))
            tasks.create_task(persist(self._send_notes, self._noted, pauses=(SHORTEST, RESEND)))
            tasks.create_task(self._publish_marks())
            tasks.create_task(self._hosts.watch())
            tasks.create_task(self._watch_doubts())
            tasks.create_task(self._until_halted())
            tasks.create_task(self._store.until_deposed())
            self._link.spawn(self.resume())
            on_started()

    async def _begin(self) -> None:
        self._epoch = await self._store.begin_epoch(now=now_ms(), order_key=public_half(self._key))
        self._published = await self._store.sequence()
        await self._store.forget(now_ms() - KEEP_MS)

    @property
    def leads(self) -> bool:
        """Whether it has begun its epoch: until then it has nothing to say."""
        return self._epoch > 0

    async def _until_halted(self) -> None:
        await self._halting.run()
        raise _Halted

    async def _watch_doubts(self) -> None:
        """Go on once an administrator has said that the database may be from the past."""
        while True:
            await asyncio.sleep(LOOK_AT_DOUBTS)
            if not self._store.state.waits_for_confirmation:
                continue
            try:
                waits = await self._store.reload_conflicts()
            except Unavailable as error:
                log.warning("The cluster's database does not answer.", reason=str(error))
                continue
            if not waits:
                log.info("An administrator has confirmed the restored database.")
                await self.resume()

    def _host_moved(self) -> None:
        self._halting.moved.set()

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
        unsettled, unfinished = await until_available(self._unfinished)
        for desktop in unsettled:
            self._desktops.wake(desktop)
        if any(isinstance(entry.order, Halt) for entry in unfinished):
            self._halting.begin()
        self._wake()

    async def _unfinished(self) -> tuple[list[str], list[JournaledCommand]]:
        """Desktops and commands that are under way; those about hosts have been taken up."""
        unsettled, unfinished = await self._store.unsettled(), await self._store.unfinished()
        await self._hosts.resume(unfinished)
        return unsettled, unfinished

    def _wake(self) -> None:
        """Look at the database again for all there is to tell."""
        self._committed.clear()
        self._all_outcomes = True
        self._changed.set()
        self._finished.set()
        self._noted.set()

    def _on_commit(self, committed: Committed) -> None:
        self._committed.append(committed)
        self._removed |= committed.removals
        self._changed.set()
        if committed.outcomes is None:
            self._all_outcomes = True
        else:
            self._ended += [(committed.version, *one) for one in committed.outcomes]
        if self._ended or self._all_outcomes:
            self._finished.set()
        if committed.audit_events:
            self._noted.set()

    def _on_unsure(self) -> None:
        log.warning("Whether a change was written is not known; everything is looked at again.")
        self._link.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        await until_available(self._store.catch_up)
        self._removed = True
        await self.resume()

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
            entry = JournaledCommand(message.id, message.user, message.order, message.deadline)
            await self._store.change(partial(abandon, command=entry, now=now_ms()), read_set_of(entry))
            await self._wake_for(entry)
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
        entry = JournaledCommand(message.id, message.user, message.order, message.deadline)
        decide = partial(
            accept,
            command=entry,
            now=now_ms(),
            overcommit=self._settings.vcpu_overcommit,
            notice_ms=int(self._settings.drain_notice * 1000),
            halted=self._halting.is_on,
            suspended=self._store.state.is_suspended,
        )
        if await self._store.change(decide, read_set_of(entry, is_new=True)):
            self._taken.labels(kind=entry.order.kind).inc()
            log.debug("Command taken.", command=entry.id, kind=entry.order.kind)
        # One that comes again too: it may have been committed, and the answer of the database lost.
        await self._wake_for(entry)

    async def _wake_for(self, entry: JournaledCommand) -> None:
        if desktop := desktop_of(entry.order):
            self._desktops.wake(desktop)
        elif isinstance(entry.order, Halt):
            self._halting.begin()
        else:
            await self._hosts.take_up(entry)

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
            return RESEND
        order: EnsureDesktop | EnsureGone
        if placed.wanted is DesktopState.GONE:
            grace = self._settings.shutdown_grace if placed.seen.until else 0
            proof = prove(Ordered(host, self._epoch, sequence, desktop), self._key)
            order = EnsureGone(epoch=self._epoch, desktop=desktop, grace=grace, sequence=sequence, proof=proof)
        elif placed.seen.state is DesktopState.REQUESTED:
            if spec is None:
                return RESEND
            order = EnsureDesktop(
                epoch=self._epoch,
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
            await self._link.request(self._subjects.orders(host), order, Done)
        except (LinkDown, MessageError) as error:
            log.warning("A host did not take an order; it is sent again.", host=host, reason=str(error))
            return 1.0
        return RESEND

    def _ordered(self, placed: PlacedDesktop, spec: ImageSpec, host: str, sequence: int) -> Ordered:
        """What is signed of a start."""
        seen, memory, vcpus = placed.seen, placed.memory_mib, placed.vcpus
        start = (seen.id, seen.boot, seen.owner, seen.image, spec.disk, memory, vcpus)
        return Ordered(host, self._epoch, sequence, *start)

    # To the endpoint

    async def _report_outcomes(self) -> bool:
        """Report outcomes that wait, the oldest first; True when all of them are taken."""
        try:
            ended = await self._outcomes()
            answers = await asyncio.gather(*(self._report_outcome(*one) for one in ended))
            taken = [entry.id for (_, entry, _), answer in zip(ended, answers, strict=True) if answer]
            if taken:
                await self._store.reported(taken)
        except Unavailable:
            self._all_outcomes = True
            raise
        self._all_outcomes |= len(taken) < len(ended)
        if taken and (self._all_outcomes or self._ended):
            self._finished.set()
        self._halting.moved.set()
        if len(taken) > 1:
            await asyncio.sleep(GATHER)
        return len(taken) == len(ended)

    async def _outcomes(self) -> list[tuple[int, JournaledCommand, Rows]]:
        """Those just written; or, where some may be missing among these, the first page of all that wait."""
        just_written, self._ended = self._ended, []
        if not self._all_outcomes:
            return just_written
        self._all_outcomes = False
        sequence, unreported = await self._store.unreported()
        self._all_outcomes |= bool(unreported)  # there may be another page
        return [(sequence, *one) for one in unreported]

    async def _report_outcome(self, sequence: int, entry: JournaledCommand, rows: Rows) -> bool:
        assert entry.outcome is not None
        outcome = Outcome(
            id=entry.id,
            state=entry.outcome,
            fault=entry.fault,
            rows=rows,
            epoch=self._epoch,
            sequence=sequence,
            halts=self._halting.is_on and isinstance(entry.order, Halt),
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
        if not self._removed and all(one.rows is not None and not one.rows.hosts for one in self._committed):
            await asyncio.sleep(GATHER_CHANGES)
        removed, self._removed = self._removed, False
        waiting, self._committed = self._committed, []
        try:
            sequence, rows = joined(self._published, waiting) or await self._store.changes(self._published)
        except Unavailable:
            self._removed |= removed
            raise
        if rows or removed:
            await self._publish(sequence, rows, removed=removed)
        return True

    async def _publish(self, sequence: int, rows: Rows, *, removed: bool) -> None:
        """One message; for more than fits into one, or a removal, a mark: it has the reader ask for pages."""
        # Before a removal its rows are told as of the step before: pages do not name what is gone, nor why.
        told = sequence - 1 if removed else sequence
        news: Changed | Mark = Changed(epoch=self._epoch, after=self._published, sequence=told, rows=rows)
        many = len(rows.hosts) + len(rows.copies) + len(rows.desktops) > CHUNK
        mark = Mark(epoch=self._epoch, sequence=sequence)
        if many or len(encode(news)) > MAX_SIZE:
            news = mark
        elif removed:
            await self._link.publish(self._subjects.status, news)
            news = mark
        self._published = sequence
        await self._link.publish(self._subjects.status, news)

    async def _publish_marks(self) -> None:
        while True:
            await self._link.publish(self._subjects.status, Mark(epoch=self._epoch, sequence=self._published))
            await asyncio.sleep(self._settings.status_update_interval)
