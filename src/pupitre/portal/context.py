"""Portal: what every request needs, opened once per process: databases, the ticket key, live events, counters."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

import uuid_utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import Depends
from starlette.requests import HTTPConnection

from pupitre.config import Settings
from pupitre.domain.origin import ServedHosts
from pupitre.errors import Unavailable
from pupitre.pki import issuing
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.identity.devices import Devices
from pupitre.portal.identity.passwords import PasswordVerifier
from pupitre.portal.identity.revocations import passing_on_revocations
from pupitre.portal.identity.session_cache import SessionCache
from pupitre.portal.identity.throttle import Throttle
from pupitre.portal.live.batched_reads import BatchedReads
from pupitre.portal.live.change_feed import ChangeFeed
from pupitre.portal.live.rate_limit import CommandRateLimit
from pupitre.portal.live.status_mirror import StatusMirror
from pupitre.store.accounts import Accounts
from pupitre.store.audit import AuditLog
from pupitre.store.commands import Commands
from pupitre.store.revocations import Revocations
from pupitre.store.sign_in_failures import Failures
from pupitre.store.sql.engine import open_database
from pupitre.store.status import Status


@dataclass(frozen=True, slots=True)
class Portal:
    settings: Settings
    served: ServedHosts
    accounts: Accounts
    commands: Commands
    status: StatusMirror
    audit: AuditLog
    reads: BatchedReads
    rate_limit: CommandRateLimit
    feed: ChangeFeed
    session_cache: SessionCache
    signer: Ed25519PrivateKey
    passwords: PasswordVerifier
    throttle: Throttle
    devices: Devices
    metrics: Metrics

    async def missing(self) -> str | None:
        """Why a database does not answer or takes no change; None when all three do what requests need."""
        try:
            await self.accounts.user_named("")
            await self.commands.version()
            await self.status.refresh()
            for rows in (self.accounts, self.commands, self.status):
                health = rows.database.health
                if health.reason and health.may_be_tried():
                    await rows.database.check()
                if health.reason:
                    return health.reason
        except Unavailable as error:
            return error.reason
        return None


@asynccontextmanager
async def open_portal(settings: Settings, metrics: Metrics) -> AsyncIterator[Portal]:
    """Raises `SetupError` when a database or the ticket key is missing."""
    signer = issuing.load_ticket_signer(issuing.directory(settings, "portal"))
    accounts = open_database(settings, "portal", "accounts")
    commands = open_database(settings, "portal", "commands")
    status = open_database(settings, "portal", "status", read_only=True)
    try:
        command_rows = Commands(commands)
        mirror = StatusMirror(Status(status))
        account_rows = Accounts(accounts)
        reads = BatchedReads(command_rows, mirror)
        async with (
            SessionCache(account_rows).listening() as session_cache,
            ChangeFeed(
                command_rows, mirror, metrics, confirm_every=settings.status_timings.feed_confirm
            ).listening() as feed,
            passing_on_revocations(account_rows, Revocations(commands)),
        ):
            yield Portal(
                settings=settings,
                served=settings.served,
                accounts=account_rows,
                commands=command_rows,
                status=mirror,
                audit=AuditLog(commands),
                reads=reads,
                rate_limit=CommandRateLimit(int(settings.min_command_interval * 1000)),
                feed=feed,
                session_cache=session_cache,
                signer=signer,
                passwords=PasswordVerifier(),
                throttle=Throttle(Failures(accounts), settings.sign_in_per_minute),
                devices=Devices(signer),
                metrics=metrics,
            )
    finally:
        for database in (accounts, commands, status):
            await database.close()


def new_id() -> str:
    """A UUIDv7: ids sort by the time they were made."""
    return str(uuid_utils.uuid7())


def origin_of(connection: HTTPConnection) -> str:
    """The origin of ours that the browser has opened."""
    return portal_of(connection).served.origin_of(connection.headers.get("host", ""))


async def refresh_status(connection: HTTPConnection) -> None:
    """Make the mirror of the status as new as its database. Raises `Unavailable`."""
    await portal_of(connection).status.refresh()


REFRESHED: Final = Depends(refresh_status)
"""Dependency of routes that show the status: what they show is as new as its database."""


def portal_of(connection: HTTPConnection) -> Portal:
    return cast(Portal, connection.app.state.portal)
