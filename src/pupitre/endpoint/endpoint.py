"""`WebServerEndpoint`: joins the website's two databases with a cluster server.

Commands go out by the `CommandDispatcher`, outcomes and status come in here; whether the
cluster is reached is known to the `ClusterContact`.
"""

import asyncio
import contextlib
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from pupitre.domain.command import CommandEvent, CommandState, Fault
from pupitre.domain.status import Position
from pupitre.endpoint.audit_events import write_audit_event
from pupitre.endpoint.cluster_contact import ClusterContact
from pupitre.endpoint.dispatcher import CommandDispatcher
from pupitre.endpoint.revocations import send_revocations
from pupitre.endpoint.status_mirror import StatusMirror
from pupitre.errors import EndpointError, Halted, MessageError, NoAnswer, Unavailable
from pupitre.pki import issuing
from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import retry_until_available, ungrouped
from pupitre.store.audit import AuditLog
from pupitre.store.commands import Commands
from pupitre.store.revocations import Revocations
from pupitre.store.sql.engine import Database
from pupitre.store.status import Status
from pupitre.timings import GREETING_LIMIT, PAGE_LIMIT, RESEND, StatusTimings
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import (
    AnyMessage,
    AuditNotice,
    Changed,
    Done,
    GetPage,
    Outcome,
    Page,
    StatusPosition,
    StatusQuery,
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


class _Ended(Exception):
    """There is nothing left to do."""


class WebServerEndpoint:
    """Use: `connect_to_databases`, `connect_to_cluster_server`, `run`; `disconnect_from_cluster_server` ends it."""

    def __init__(self, cluster: str, registry: CollectorRegistry) -> None:
        self._cluster = cluster
        self._subjects = Subjects(cluster)
        self._registry = registry
        self._halted = asyncio.Event()
        self._open = contextlib.AsyncExitStack()
        self._commands: Commands
        self._status: Status
        self._audit: AuditLog
        self._mirror: StatusMirror
        self._broker: BrokerConnection
        self._contact: ClusterContact
        self._dispatcher: CommandDispatcher

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
        """Connect to the broker (TLS, certificates on both sides) and wait until the cluster answers.

        ``servers`` are NATS URLs; all times are in seconds. With ``answer_within`` it gives
        up then and raises `EndpointError` with the reason; otherwise it waits for ever.
        After that the broker comes back by itself.
        """
        timings = StatusTimings(status_update_interval)
        self._contact = ClusterContact(
            self._cluster,
            self._status,
            silence_limit=timings.silence_limit,
            registry=self._registry,
        )
        tls = issuing.client_context(certificate_path, ROLE)
        self._broker = BrokerConnection(servers, ROLE, tls, registry=self._registry, on_change=self._broker_changed)
        self._open.push_async_callback(self._broker.close)
        self._dispatcher = CommandDispatcher(
            self._commands,
            self._broker,
            self._subjects,
            self._contact,
            check_interval=command_timeout_check_interval,
            grace=connection_grace,
            starts_per_user=user_in_flight,
            registry=self._registry,
        )
        self._mirror = StatusMirror(
            self._cluster, self._status, self._page, confirm_every=timings.write_confirm_ms, registry=self._registry
        )
        try:
            async with timeout(answer_within):
                await self._broker.open()
                await retry_until_available(self._mirror.open)
                await self._broker.serve(self._subjects.outcomes, self._on_outcome)
                await self._broker.serve(self._subjects.status, self._on_status, in_order=True)
                while not await self._greet():  # noqa: ASYNC110 - the broker says nothing when the cluster comes
                    await asyncio.sleep(RESEND.first)
        except TimeoutError as error:
            raise EndpointError(
                f"The cluster {self._cluster} did not answer at {servers} within {answer_within:g} s."
            ) from error

    def use_certificate(self, certificate_path: Path) -> None:
        """Show the certificate as it is there now from the next connection on. Raises `SetupError`."""
        self._broker.use(issuing.client_context(certificate_path, ROLE))

    async def disconnect_from_cluster_server(self) -> None:
        """Close connection and databases; commands under way keep their rows and are taken up at the next start."""
        await self._open.aclose()

    async def run(self) -> None:
        """Serve until cancelled, or until the cluster is halted."""
        with contextlib.suppress(_Ended), ungrouped(_Ended):
            await self._serve()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._wait_until_halted())
            tasks.create_task(self._dispatcher.run())
            tasks.create_task(self._contact.watch(self._greet))
            tasks.create_task(send_revocations(Revocations(self._commands.database), self._broker, self._subjects))

    def _broker_changed(self, connected: bool) -> None:
        if not connected:
            self._broker.spawn(self._contact.missed("The message broker is away."))
        self._contact.look_again()
        self._dispatcher.wake()

    async def _greet(self) -> bool:
        try:
            mark = await self._broker.request(
                self._subjects.commands, StatusQuery(), StatusPosition, timeout=GREETING_LIMIT
            )
            await self._contact.heard()
            await self._mirror.mark(mark)
        except NoAnswer as error:
            await self._contact.missed(f"The cluster server does not answer: {error}")
            return False
        except (MessageError, Unavailable) as error:
            log.warning("greeting_failed", reason=str(error))
            return False
        return True

    async def _page(self, page: GetPage) -> Page:
        return await self._broker.request(self._subjects.commands, page, Page, timeout=PAGE_LIMIT)

    # Outcomes: from the cluster to the rows

    async def _on_outcome(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, AuditNotice):
            await self._contact.heard()
            await write_audit_event(self._audit, message)
            return Done()
        if not isinstance(message, Outcome) or message.state not in OUTCOMES:
            raise MessageError("The endpoint takes nothing but outcomes and audit events here.")
        await self._contact.heard()
        # Status first: who reads that a start succeeded must find the desktop running.
        await self._mirror.apply_early(message.rows, Position(message.epoch, message.sequence))
        await self._dispatcher.end(message.id, OUTCOMES[message.state], message.fault)
        if message.halts:
            await self._halt()
        return Done()

    async def _halt(self) -> None:
        """The cluster has been halted: nobody will answer what still waits, and this process has nothing to do."""
        for waiting in await self._commands.unfinished():
            await self._dispatcher.end(waiting.id, CommandEvent.CANCEL, HALTED)
        await self._contact.missed("An administrator has halted it.")
        self._halted.set()

    async def _wait_until_halted(self) -> None:
        await self._halted.wait()
        await self._broker.settle()  # the cluster waits for our word that it may go
        log.info("cluster_halted")
        raise _Ended

    async def _on_status(self, message: AnyMessage) -> None:
        if not isinstance(message, Changed | StatusPosition):
            raise MessageError("The endpoint takes nothing but changes and positions here.")
        await self._contact.heard()
        if isinstance(message, StatusPosition):
            await self._mirror.mark(message)
        else:
            await self._mirror.change(message)
