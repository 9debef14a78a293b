"""What `pupitre.store.engine` needs of a kind of database; `sqlite`, `postgresql` and `mariadb` each have it.

All three promise the same: a commit is on disk before it returns; a read is one
consistent look; who listens hears of every commit after it began to listen, or
is woken once more than needed, never once less.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

POOL = {"pool_size": 4, "max_overflow": 4, "pool_timeout": 10}


class Listening(Protocol):
    """An async context manager; ``heard`` waits for the next ring, folding many into one. Entering never fails."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def heard(self) -> None: ...


class Dialect(Protocol):
    @property
    def reading(self) -> AsyncEngine:
        """Its transactions see one state of the database."""

    @property
    def writing(self) -> AsyncEngine:
        """Its transactions see what others commit; the counter's row puts them in order."""

    @property
    def turn(self) -> AbstractAsyncContextManager[object]:
        """Entered before a writing transaction begins."""

    async def announce(self, connection: AsyncConnection, topics: Sequence[str]) -> None:
        """The last words of a transaction: its commit wakes who listens to ``topics``."""

    def announced(self, topics: Sequence[str]) -> None:
        """The same, just after the commit. Never raises."""

    def listen(self, topic: str) -> Listening:
        """Listen to one topic."""

    async def close(self) -> None:
        """Close every connection."""
