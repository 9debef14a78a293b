"""Whether a database does its work, as its last use showed; a process says so while it does not.

A database that answers but takes no change (it only reads after a fail-over, its disk is
full) is no database to work with: readiness goes by changes, not by answers.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from pupitre.errors import Unavailable
from pupitre.net.ops import Ops
from pupitre.timings import DATABASE_RETRY


class Health:
    """``reason`` is None while the database does its work."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._failed = asyncio.Event()
        self._tried = -DATABASE_RETRY

    def works(self) -> None:
        """A change was taken, or, where only reading is due, a question answered."""
        if self.reason is not None:
            self.reason = None
            self._failed.clear()

    def fails(self, reason: str) -> None:
        self.reason = reason
        self._failed.set()

    async def until_failed(self) -> None:
        await self._failed.wait()

    def may_be_tried(self) -> bool:
        """True no more than once in `DATABASE_RETRY`: each try writes, and anybody may ask how a database is."""
        now = asyncio.get_running_loop().time()
        if now - self._tried < DATABASE_RETRY:
            return False
        self._tried = now
        return True


class Checked(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def health(self) -> Health: ...

    async def check(self) -> None:
        """Raises `Unavailable`."""


@asynccontextmanager
async def telling(ops: Ops, *databases: Checked) -> AsyncIterator[None]:
    """Context in which the process is not ready as long as one of these does not do its work."""
    async with AsyncExitStack() as tasks:
        for database in databases:
            task = asyncio.create_task(_tell(ops, database), name=f"health of {database.name}")
            tasks.push_async_callback(_ended, task)
        yield


async def _tell(ops: Ops, database: Checked) -> None:
    while True:
        await database.health.until_failed()
        while database.health.reason is not None:
            ops.lacks(database.name, database.health.reason)
            await asyncio.sleep(DATABASE_RETRY)
            with contextlib.suppress(Unavailable):  # the reason is in its health
                await database.check()
        ops.has(database.name)


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
