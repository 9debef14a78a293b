"""`WebServerEndpoint`: joins the website's two databases with a cluster server.

A command leaves its row only along `COMMAND_LIFE`. It is sent until the cluster
answers that it is journalled; one that the cluster cannot be told of within the
grace period ends with CONNECTION_ERROR, one without outcome at its deadline is
timed out, and in both cases the cluster is told to undo what it may have made.
"""

import asyncio
import contextlib
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from pupitre import pki
from pupitre.clock import now_ms
from pupitre.domain.command import Command, CommandEvent, CommandKind, CommandState, Fault
from pupitre.domain.status import Link as LinkState
from pupitre.domain.status import Position
from pupitre.endpoint.endings import tell_endings
from pupitre.endpoint.notes import write_note
from pupitre.endpoint.status import HEARD_EVERY_MS, StatusMirror
from pupitre.errors import (
    ConnectionFault,
    EndpointError,
    LinkDown,
    MessageError,
    TimedOut,
    Unavailable,
)
from pupitre.store.audit import AuditLog
from pupitre.store.commands import ASKED, Commands
from pupitre.store.endings import Endings
from pupitre.store.engine import Database
from pupitre.store.status import Status
from pupitre.wire.link import Link
from pupitre.wire.messages import (
    Abandon,
    AnyMessage,
    Changed,
    Done,
    GetPage,
    Hello,
    Mark,
    Noted,
    Outcome,
    Page,
    Submit,
)
from pupitre.wire.subjects import Subjects
from pupitre.workers import persist, rung

log = structlog.get_logger(__name__)

ROLE = "endpoint"
PAGE = 500
AT_ONCE = 64
"""Commands sent side by side."""
RESEND = (0.25, 2.0)
"""Seconds between two tries to send: at first, and at most."""

OUTCOMES = {
    CommandState.SUCCEEDED: CommandEvent.SUCCEED,
    CommandState.FAILED: CommandEvent.FAIL,
    CommandState.CANCELLED: CommandEvent.CANCEL,
}


class WebServerEndpoint:
    """Use: `connect_to_databases`, `connect_to_cluster_server`, `run`; `disconnect_from_cluster_server` ends it."""

    def __init__(self, cluster: str, registry: CollectorRegistry) -> None:
        self._cluster = cluster
        self._subjects = Subjects(cluster)
        self._registry = registry
        self._wake = asyncio.Event()
        self._asked_since = asyncio.Event()
        self._silence_limit = 0.0
        self._heard = 0.0
        self._reached: bool | None = None
        self._lost_because = ""
        self._link_written: bool | None = None
        self._link_turn = asyncio.Lock()
        self._look = asyncio.Event()
        self._open = contextlib.AsyncExitStack()
        self._commands: Commands
        self._status: Status
        self._audit: AuditLog
        self._mirror: StatusMirror
        self._link: Link
        self._timeout_check_interval = 5.0
        self._grace_ms = 10_000
        self._outcomes = Counter("pupitre_outcomes", "Outcomes of commands", ["outcome"], registry=registry)
        self._reached_gauge = Gauge("pupitre_cluster_reached", "1 while the cluster answers", registry=registry)

    def connect_to_databases(self, commands: Database, status: Database) -> None:
        """Use these databases, and close them at the end."""
        self._commands, self._status = Commands(commands), Status(status)
        self._audit = AuditLog(commands)
        for database in (commands, status):
            self._open.push_async_callback(database.close)

    async def connect_to_cluster_server(
        self,
        certificate_path: Path,
        servers: str,
        *,
        status_update_interval: float,
        command_timeout_check_interval: float,
        connection_grace: float,
        answer_within: float | None = None,
    ) -> None:
        """Open the link (TLS, certificates on both sides) and wait until the cluster answers.

        ``servers`` are NATS URLs; all times are in seconds. With ``answer_within`` it gives
        up then and raises `EndpointError` with the reason; otherwise it waits for ever.
        After that the link comes back by itself.
        """
        self._timeout_check_interval = command_timeout_check_interval
        self._grace_ms = int(connection_grace * 1000)
        self._silence_limit = status_update_interval * 2.5
        tls = pki.client_context(certificate_path, ROLE)
        self._link = Link(servers, ROLE, tls, registry=self._registry, on_change=self._broker_changed)
        self._open.push_async_callback(self._link.close)
        heard_every = min(HEARD_EVERY_MS, int(status_update_interval * 250))
        self._mirror = StatusMirror(self._cluster, self._status, self._page, heard_every=heard_every)
        try:
            async with asyncio.timeout(answer_within):
                await self._link.open()
                await self._mirror.open()
                await self._link.serve(self._subjects.outcomes, self._on_outcome)
                await self._link.serve(self._subjects.status, self._on_status, in_order=True)
                while not await self._greet():  # noqa: ASYNC110 - the broker says nothing when the cluster comes
                    await asyncio.sleep(RESEND[0])
        except TimeoutError as error:
            raise EndpointError(
                f"The cluster {self._cluster} did not answer at {servers} within {answer_within:g} s."
            ) from error

    async def disconnect_from_cluster_server(self) -> None:
        """Close link and databases; commands under way keep their rows and are taken up at the next start."""
        await self._open.aclose()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(persist(self._send_all, self._wake, pauses=RESEND))
            tasks.create_task(self._time_out_commands())
            tasks.create_task(self._watch_cluster())
            tasks.create_task(tell_endings(Endings(self._commands.database), self._link, self._subjects))

    # The cluster: there or not

    def _broker_changed(self, connected: bool) -> None:
        if not connected:
            self._link.spawn(self._lost("The message broker is away."))
        self._look.set()
        self._wake.set()

    async def _greet(self) -> bool:
        try:
            mark = await self._link.request(self._subjects.commands, Hello(), Mark, timeout=1)
            await self._reach()
            await self._mirror.mark(mark)
        except LinkDown as error:
            await self._lost(f"The cluster server does not answer: {error}")
            return False
        except (MessageError, Unavailable) as error:
            log.warning("The cluster's greeting came to nothing.", reason=str(error))
            return False
        return True

    async def _reach(self) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._reached is not True:
            self._reached = True
            self._reached_gauge.set(1)
            log.info("The cluster is reached.", cluster=self._cluster)
            await self._write_link()
            self._wake.set()

    async def _lost(self, reason: str) -> None:
        if self._reached is not False:
            self._reached = False
            self._lost_because = reason
            self._reached_gauge.set(0)
            log.warning("The cluster is not reached.", cluster=self._cluster, reason=reason)
            await self._write_link()

    async def _write_link(self) -> None:
        """Write how it is now; a database that does not answer is tried again by `_watch_cluster`."""
        async with self._link_turn:
            reached = bool(self._reached)
            self._link_written = None
            try:
                reason = None if reached else self._lost_because
                await self._status.set_link(LinkState(self._cluster, reached, now_ms(), reason))
            except Unavailable as error:
                log.warning("The status database does not answer.", reason=str(error))
                self._look.set()
            else:
                self._link_written = reached

    async def _watch_cluster(self) -> None:
        """Liveness is judged by what is heard, never by the connection."""
        loop = asyncio.get_running_loop()
        pause = RESEND[0]
        while True:
            if self._link_written is not self._reached:
                await self._write_link()
            self._look.clear()
            left = self._heard + self._silence_limit - loop.time()
            if self._reached and left > 0:
                pause = RESEND[0]
            elif await self._greet():
                continue
            else:
                left, pause = pause, min(pause * 2, RESEND[1])
            if self._link_written is not self._reached:
                left = min(left, RESEND[1])
            await rung(self._look, left)

    async def _page(self, page: GetPage) -> Page:
        return await self._link.request(self._subjects.commands, page, Page, timeout=5)

    # Commands: from the rows to the cluster

    async def _listen(self) -> None:
        async with self._commands.database.listen(ASKED) as listener:
            while True:
                self._wake.set()
                self._asked_since.set()
                await listener.heard()

    async def _send_all(self) -> bool:
        """Send what waits; True when nothing waits any more."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(command: Command) -> bool:
            async with slots:
                return await self._send(command)

        waiting = await self._commands.to_send(limit=PAGE)
        if len(waiting) == PAGE:
            self._wake.set()  # there are more
        sent = await asyncio.gather(*(one(command) for command in waiting))
        abandoned = True
        if self._reached:
            abandoned = await self._abandon_all()
        return all(sent) and abandoned

    async def _send(self, command: Command) -> bool:
        message = Submit(id=command.id, user=command.user, order=command.order, deadline=command.deadline)
        try:
            await self._link.request(self._subjects.commands, message, Done)
        except LinkDown as error:
            await self._lost(f"The cluster server does not answer: {error}")
            await self._not_sent(command, str(error))
            return False
        except MessageError as error:
            fault = Fault(error.code, f"The cluster refused the command: {error}")
            await self._end(command.id, CommandEvent.FAIL, fault)
            return True
        await self._reach()
        await self._commands.advance(command.id, CommandEvent.ACCEPT, now=now_ms())
        return True

    async def _not_sent(self, command: Command, reason: str) -> None:
        if now_ms() - command.created >= self._grace_ms:
            sentence = f"The cluster is not reached: {reason} Nothing was started; try again later."
            await self._end(command.id, CommandEvent.FAIL, Fault(ConnectionFault.code, sentence), abandon=True)
        elif command.state is CommandState.QUEUED:
            await self._commands.advance(command.id, CommandEvent.SEND, now=now_ms())

    async def _abandon_all(self) -> bool:
        all_done = True
        for command in await self._commands.to_abandon():
            message = Abandon(id=command.id, user=command.user, order=command.order, deadline=command.deadline)
            try:
                await self._link.request(self._subjects.commands, message, Done)
            except LinkDown as error:
                log.warning("The cluster has yet to undo a command.", command=command.id, reason=str(error))
                return False
            except MessageError as error:
                log.error("The cluster refuses to undo a command.", command=command.id, reason=str(error))
                all_done = False
                continue
            await self._commands.abandoned(command.id)
        return all_done

    async def _time_out_commands(self) -> None:
        while True:
            try:
                deadline = await self._commands.next_deadline()
                if deadline is not None and deadline <= now_ms():
                    await self._time_out_due()
                    continue
            except Unavailable as error:
                log.warning("The commands database does not answer.", reason=str(error))
                deadline = now_ms() + 60_000
            if deadline is None:
                await self._asked_since.wait()
                self._asked_since.clear()
                continue
            left = max(deadline - now_ms(), 1) / 1000
            await asyncio.sleep(min(left, self._timeout_check_interval))

    async def _time_out_due(self) -> None:
        now = now_ms()
        for command in await self._commands.unfinished():
            if command.deadline <= now:
                seconds = (command.deadline - command.created) / 1000
                rest = (
                    "It is still tried." if command.kind is CommandKind.DESTROY_DESKTOP else "What was begun is undone."
                )
                fault = Fault(TimedOut.code, f"There was no outcome within {seconds:g} seconds. {rest}")
                await self._end(command.id, CommandEvent.TIME_OUT, fault, abandon=True)
        self._wake.set()

    # Outcomes: from the cluster to the rows

    async def _on_outcome(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, Noted):
            await self._reach()
            await write_note(self._audit, message)
            return Done()
        if not isinstance(message, Outcome) or message.state not in OUTCOMES:
            raise MessageError("The endpoint takes nothing but outcomes and notes here.")
        await self._reach()
        # Status first: who reads that a start succeeded must find the desktop running.
        await self._mirror.foretell(message.rows, Position(message.epoch, message.sequence))
        await self._end(message.id, OUTCOMES[message.state], message.fault)
        return Done()

    async def _end(self, command: str, event: CommandEvent, fault: Fault | None, *, abandon: bool = False) -> None:
        if await self._commands.advance(command, event, now=now_ms(), fault=fault, abandon=abandon):
            self._outcomes.labels(outcome=fault.code if fault else str(event)).inc()
            log.info("Command ended.", command=command, outcome=str(event), reason=fault.reason if fault else None)

    async def _on_status(self, message: AnyMessage) -> None:
        if not isinstance(message, Changed | Mark):
            raise MessageError("The endpoint takes nothing but changes and marks here.")
        await self._reach()
        if isinstance(message, Mark):
            await self._mirror.mark(message)
        else:
            await self._mirror.change(message)
