"""The database ``accounts``, opened by those commands that run on the portal's own machine."""

import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pupitre.config import Settings
from pupitre.domain.access import User
from pupitre.errors import Invalid, NotFound
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.engine import open_database


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[Accounts]:
    """Raises `SetupError` when there is no such database."""
    database = open_database(settings, "portal", "accounts")
    try:
        yield Accounts(database)
    finally:
        await database.close()


def checked_name(name: str) -> str:
    """Raises `Invalid`."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise Invalid("A user's name is 1 to 64 small letters, digits, dots, hyphens and underscores. Choose another.")
    return name


async def find_user(accounts: Accounts, name: str) -> User:
    """Raises `NotFound`."""
    found = await accounts.user_named(name)
    if found is None:
        raise NotFound(f"There is no user named {name}. See: pupitre user list")
    return found[0]


async def open_session(settings: Settings, name: str, seconds: float) -> str:
    """A bearer token that is good for ``seconds``; the database keeps its SHA-256 only."""
    token = secrets.token_urlsafe(32)
    now = time.time()
    async with open_accounts(settings) as accounts:
        user = await find_user(accounts, name)
        await accounts.open_session(
            _digest(token), user.id, SessionKind.BEARER, now=int(now * 1000), expires=int((now + seconds) * 1000)
        )
    return token


async def close_session(settings: Settings, token: str) -> None:
    async with open_accounts(settings) as accounts:
        await accounts.close_session(_digest(token))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
