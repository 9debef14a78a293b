"""Port to a kind of database: what `pupitre.store.sql.engine` needs of each package in `backends`.

All three promise the same: a commit is on disk before it returns; a read is one
consistent look; who listens hears of every commit after it began to listen, or
is woken once more than needed, never once less.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from sqlalchemy import Column, Executable, Table, Update

from pupitre.store.sql.pool import Pool
from pupitre.store.sql.statement import Result, Values


class Connection(Protocol):
    """One transaction."""

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        """The rows that it answers with, or how many it has changed; nothing for several sets of values at once."""

    async def change_and_read(self, change: Update, column: Column[Any], values: Values | None = None) -> Any:
        """``column`` after ``change`` of the one row of a table; None where it has changed none."""

    def upsert(self, table: Table, names: tuple[str, ...]) -> Executable:
        """The statement that inserts a row, or sets the columns ``names`` in the row that has its primary key."""

    async def rollback(self) -> None:
        """End the transaction: nothing of it stays."""


class DriverConnection(Connection, Protocol):
    """A connection as `Pool` keeps it; between transactions each statement is one of its own."""

    def is_lost(self) -> bool: ...

    def retire(self) -> None:
        """It is lost from now on; who uses it may still end what it does."""

    async def begin(self, *, write: bool) -> None: ...

    async def commit(self, topics: Sequence[str]) -> None:
        """Commit what there is of a transaction: it is on disk when this returns; listeners to ``topics`` wake."""

    def abandon(self) -> None:
        """End the transaction without waiting: who used it was cancelled, and nobody knows how far it came."""

    async def close(self) -> None: ...


class Listening(Protocol):
    """An async context manager; ``heard`` waits for the next ring, folding many into one. Entering never fails."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def wait(self) -> None: ...


class Dialect(Protocol):
    @property
    def reading(self) -> "Pool[DriverConnection]":
        """Their transactions see one state of the database."""

    @property
    def writing(self) -> "Pool[DriverConnection]":
        """Their transactions see what others commit; the counter's row puts them in order."""

    @property
    def turn(self) -> AbstractAsyncContextManager[object]:
        """Entered before a writing transaction begins."""

    def is_conflict(self, error: Exception) -> bool:
        """Whether the driver says that a key is there already."""

    def is_about_a_value(self, error: Exception) -> bool:
        """Whether the driver says that no row can hold a value (SQLSTATE class 22)."""

    def is_failure(self, error: Exception) -> bool:
        """Whether the driver says anything at all."""

    def ends_sessions(self, error: Exception) -> bool:
        """Whether the server says that what is connected to it had better connect anew.

        It only reads since another one leads, it shuts down, or it has closed the connection.
        """

    def notify(self, topics: Sequence[str]) -> None:
        """Just after a commit: wake who listens to ``topics``, if the commit did not. Never raises."""

    def listen(self, topic: str) -> Listening:
        """Listen to one topic."""

    async def close(self) -> None:
        """Close every connection."""
