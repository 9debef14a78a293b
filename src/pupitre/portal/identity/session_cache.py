"""Session cache: sign-ins as this process last saw them. Many requests a second ask, few reach the database.

An answer is remembered for `REMEMBERED` seconds at most. Whatever ends a session wakes
every portal, which then forgets all answers; the process that ends one forgets before
it says so. An answer that was on its way meanwhile is given to who asked, and not kept.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from pupitre.runtime.batch import Batch
from pupitre.runtime.clock import now_ms
from pupitre.store.accounts import SESSIONS, Accounts, Session
from pupitre.store.sql.dialect import Listening

REMEMBERED = 0.5
MOST = 10_000
"""Answers kept at most; then all are forgotten."""


class _Answer(NamedTuple):
    session: Session
    until: float


class SessionCache:
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._kept: dict[str, _Answer] = {}
        self._look: Batch[str, Session | None] = Batch(self._read)
        self._generation = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["SessionCache"]:
        async with self._accounts.database.listen(SESSIONS) as ended, asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(self._hear(ended))
            try:
                yield self
            finally:
                hearing.cancel()

    async def session(self, token_hash: str) -> Session | None:
        """The live session with this token. Raises `Unavailable`."""
        kept = self._kept.get(token_hash)
        if kept and kept.until > time.monotonic() and kept.session.expires > now_ms():
            return kept.session
        return await self._look.do(token_hash)

    def forget(self) -> None:
        """A session has ended, or may have."""
        self._generation += 1
        self._kept.clear()

    async def _read(self, token_hashes: Sequence[str]) -> list[Session | None]:
        generation = self._generation
        found = await self._accounts.live(set(token_hashes), now=now_ms())
        if generation == self._generation:
            self._keep(found)
        return [found.get(token_hash) for token_hash in token_hashes]

    def _keep(self, found: dict[str, Session]) -> None:
        if len(self._kept) > MOST:
            self._kept.clear()
        until = time.monotonic() + REMEMBERED
        self._kept |= {token_hash: _Answer(session, until) for token_hash, session in found.items()}

    async def _hear(self, ended: Listening) -> None:
        while True:
            await ended.wait()
            self.forget()
