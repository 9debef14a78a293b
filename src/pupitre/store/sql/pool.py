"""Connections to one database: a few, opened when they are needed, the warmest one first.

Of our own, because a library's (asyncpg's, SQLAlchemy's) costs as much as a small statement does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from pupitre.errors import Unavailable
from pupitre.runtime.timeouts import timeout
from pupitre.timings import POOL_DISCARD, POOL_WAIT

SIZE = 8


class Pooled(Protocol):
    def is_lost(self) -> bool:
        """It is of no use any more."""

    def abandon(self) -> None:
        """Abandon the connection without a wait for what it was doing: its user was cancelled."""

    def retire(self) -> None:
        """It is lost from now on; who uses it may still end what it does."""

    async def close(self) -> None:
        """Never raises; it is closed when this returns."""


C = TypeVar("C", bound=Pooled)
R = TypeVar("R")


class Pool(Generic[C]):
    """``open`` makes a connection to the database that people know as ``name``; ``patience`` is for one to be free."""

    def __init__(self, name: str, open: Callable[[], Awaitable[C]], *, patience: float = POOL_WAIT) -> None:
        self._name = name
        self._patience = patience
        self._open = open
        self._slots = asyncio.Semaphore(SIZE)
        self._resting: list[C] = []
        self._open_ones: set[C] = set()
        self._discarded = -POOL_DISCARD
        self._closed = False

    async def take(self, begin: Callable[[C], Awaitable[R]]) -> tuple[C, R]:
        """A connection and what ``begin`` made of it; `give` it back.

        One on which ``begin`` fails because it went stale while it rested is replaced unseen.
        Raises `Unavailable` when none is free within `POOL_WAIT`, and what ``begin`` raises.
        """
        await self._slot()
        try:
            while self._resting:
                connection = self._resting.pop()
                if connection.is_lost():
                    await self._end(connection)
                    continue
                try:
                    return connection, await begin(connection)
                except Exception:
                    if not connection.is_lost():
                        self._resting.append(connection)
                        raise
                    await self._end(connection)
                except BaseException:
                    await self._leave(connection)
                    raise
            connection = await self._open()
            self._open_ones.add(connection)
            try:
                return connection, await begin(connection)
            except Exception:
                await self._end(connection)
                raise
            except BaseException:
                await self._leave(connection)
                raise
        except BaseException:
            self._slots.release()
            raise

    async def _leave(self, connection: C) -> None:
        connection.abandon()
        await self._rest(connection)

    async def give(self, connection: C) -> None:
        """Back, for the next one; or closed, if it is lost."""
        self._slots.release()
        await self._rest(connection)

    async def _rest(self, connection: C) -> None:
        if connection.is_lost() or self._closed:
            await self._end(connection)
        else:
            self._resting.append(connection)

    async def _end(self, connection: C) -> None:
        self._open_ones.discard(connection)
        await connection.close()

    def discard(self) -> None:
        """The server at the other end is of no use any more: whoever asks next has a new connection.

        Connections in use end with what they do.
        """
        now = asyncio.get_running_loop().time()
        if now - self._discarded >= POOL_DISCARD:
            self._discarded = now
            for connection in self._open_ones:
                connection.retire()

    async def close(self) -> None:
        self._closed = True
        resting, self._resting = self._resting, []
        await asyncio.gather(*(self._end(connection) for connection in resting))

    async def _slot(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with timeout(self._patience):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Unavailable(f"The database {self._name} has too much to do.") from error
