"""Accounts as those commands change them that run on the portal's own machine, straight in its databases.

Each change is in the audit log in the name of the machine's user who made it.
"""

import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pupitre.config import Settings
from pupitre.domain.people.access import User
from pupitre.environment import login_name
from pupitre.errors import NotFound
from pupitre.runtime.clock import now_ms
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.audit import NOBODY, Act, AuditEntry, AuditLog, bounded
from pupitre.store.commands import Commands
from pupitre.store.sign_in_failures import Failures
from pupitre.store.sql.engine import open_database

ORIGIN = "this machine"


@dataclass(frozen=True, slots=True)
class AccountDatabases:
    """Databases that hold something of users."""

    accounts: Accounts
    failures: Failures
    commands: Commands
    audit: AuditLog

    async def note(self, act: Act, subject: str, detail: str = "") -> None:
        entry = AuditEntry(
            now_ms(), NOBODY, login_name(os.getuid()), act, subject, ORIGIN, outcome="done", detail=detail
        )
        await self.audit.add(entry)


@asynccontextmanager
async def open_account_databases(settings: Settings) -> AsyncIterator[AccountDatabases]:
    """Raises `SetupError` when a database is missing."""
    accounts = open_database(settings, "portal", "accounts")
    try:
        commands = open_database(settings, "portal", "commands")
        try:
            yield AccountDatabases(Accounts(accounts), Failures(accounts), Commands(commands), AuditLog(commands))
        finally:
            await commands.close()
    finally:
        await accounts.close()


async def find_user(accounts: Accounts, name: str) -> User:
    """Raises `NotFound`."""
    found = await accounts.user_named(name)
    if found is None:
        raise NotFound(f"There is no user named {bounded(name, 64)}. See: pupitre user list")
    return found[0]


async def open_session(settings: Settings, name: str, seconds: float, act: Act) -> str:
    """A bearer token that is good for ``seconds``; the database keeps its SHA-256 only."""
    token = secrets.token_urlsafe(32)
    now = time.time()
    async with open_account_databases(settings) as databases:
        user = await find_user(databases.accounts, name)
        await databases.accounts.open_session(
            _digest(token), user.id, SessionKind.BEARER, now=int(now * 1000), expires=int((now + seconds) * 1000)
        )
        await databases.note(act, user.name, "on the command line")
    return token


async def close_session(settings: Settings, token: str) -> None:
    async with open_account_databases(settings) as databases:
        await databases.accounts.close_session(_digest(token), watched=False)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
