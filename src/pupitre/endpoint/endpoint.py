"""`WebServerEndpoint`: joins the website's two databases with a cluster server.

Commands go out by the `Carrier`, outcomes and status come in here; and here is known
whether the cluster is reached, judged by what is heard from it and never by a connection.
"""

import asyncio
import contextlib
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge

from pupitre.domain.command import CommandEvent, CommandState, Fault
from pupitre.domain.status import Link as LinkState
from pupitre.domain.status import Position
from pupitre.endpoint.audit_events import write_note
from pupitre.endpoint.dispatcher import RESEND, Carrier
from pupitre.endpoint.revocations import tell_endings
from pupitre.endpoint.status_mirror import HEARD_EVERY_MS, StatusMirror
from pupitre.errors import EndpointError, Halted, LinkDown, MessageError, Unavailable
from pupitre.pki import issuing
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import rung, ungrouped, until_available
from pupitre.store.audit import AuditLog
from pupitre.store.commands import Commands
from pupitre.store.revocations import Endings
from pupitre.store.sql.engine import Database
from pupitre.store.status import Status
from pupitre.wire.connection import Link
from pupitre.wire.messages import (
    AnyMessage,
    Changed,
    Done,
    GetPage,
    Hello,
    Mark,
    Noted,
    Outcome,
    Page,
)
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)

ROLE = "endpoint"

OUTCOMES = {
    CommandState.SUCCEEDED: CommandEvent.SUCCEED,
    CommandState.FAILED: CommandEvent.FAIL,
    CommandState.CANCELLED: CommandEvent.CANCEL,
}


HALTED = Fault(Halted.code, "The cluster was halted before this command had its outcome.")


class _End(Exception):
    """There is nothing left to do."""


class WebServerEndpoint:
    """Use: `connect_to_databases`, `connect_to_cluster_server`, `run`; `disconnect_from_cluster_server` ends it."""

    def __init__(self, cluster: str, registry: CollectorRegistry) -> None:
        self._cluster = cluster
        self._subjects = Subjects(cluster)
        self._registry = registry
        self._halted = asyncio.Event()
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
        self._carrier: Carrier
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
        user_in_flight: int = 8,
        answer_within: float | None = None,
    ) -> None:
        """Open the link (TLS, certificates on both sides) and wait until the cluster answers.

        ``servers`` are NATS URLs; all times are in seconds. With ``answer_within`` it gives
        up then and raises `EndpointError` with the reason; otherwise it waits for ever.
        After that the link comes back by itself.
        """
        self._silence_limit = status_update_interval * 2.5
        tls = issuing.client_context(certificate_path, ROLE)
        self._link = Link(servers, ROLE, tls, registry=self._registry, on_change=self._broker_changed)
        self._open.push_async_callback(self._link.close)
        self._carrier = Carrier(
            self._commands,
            self._link,
            self._subjects,
            reach=self._reach,
            lost=self._lost,
            check_interval=command_timeout_check_interval,
            grace=connection_grace,
            starts_per_user=user_in_flight,
            registry=self._registry,
        )
        heard_every = min(HEARD_EVERY_MS, int(status_update_interval * 250))
        self._mirror = StatusMirror(
            self._cluster, self._status, self._page, heard_every=heard_every, registry=self._registry
        )
        try:
            async with timeout(answer_within):
                await self._link.open()
                await until_available(self._mirror.open)
                await self._link.serve(self._subjects.outcomes, self._on_outcome)
                await self._link.serve(self._subjects.status, self._on_status, in_order=True)
                while not await self._greet():  # noqa: ASYNC110 - the broker says nothing when the cluster comes
                    await asyncio.sleep(RESEND[0])
        except TimeoutError as error:
            raise EndpointError(
                f"The cluster {self._cluster} did not answer at {servers} within {answer_within:g} s."
            ) from error

    def use_certificate(self, certificate_path: Path) -> None:
        """Show the certificate as it is there now from the next connection on. Raises `SetupError`."""
        self._link.use(issuing.client_context(certificate_path, ROLE))

    async def disconnect_from_cluster_server(self) -> None:
        """Close link and databases; commands under way keep their rows and are taken up at the next start."""
        await self._open.aclose()

    async def run(self) -> None:
        """Serve until cancelled, or until the cluster is halted."""
        with contextlib.suppress(_End), ungrouped(_End):
            await self._serve()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._until_halted())
            tasks.create_task(self._carrier.run())
            tasks.create_task(self._watch_cluster())
            tasks.create_task(tell_endings(Endings(self._commands.database), self._link, self._subjects))

    # The cluster: there or not

    def _broker_changed(self, connected: bool) -> None:
        if not connected:
            self._link.spawn(self._lost("The message broker is away."))
        self._look.set()
        self._carrier.wake()

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
            self._carrier.wake()

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
        await self._carrier.end(message.id, OUTCOMES[message.state], message.fault)
        if message.halts:
            await self._halt()
        return Done()

    async def _halt(self) -> None:
        """The cluster has been halted: nobody will answer what still waits, and this process has nothing to do."""
        for waiting in await self._commands.unfinished():
            await self._carrier.end(waiting.id, CommandEvent.CANCEL, HALTED)
        await self._lost("An administrator has halted it.")
        self._halted.set()

    async def _until_halted(self) -> None:
        await self._halted.wait()
        await self._link.settle()  # the cluster waits for our word that it may go
        log.info("The cluster was halted; the endpoint ends.")
        raise _End

    async def _on_status(self, message: AnyMessage) -> None:
        if not isinstance(message, Changed | Mark):
            raise MessageError("The endpoint takes nothing but changes and marks here.")
        await self._reach()
        if isinstance(message, Mark):
            await self._mirror.mark(message)
        else:
            await self._mirror.change(message)
