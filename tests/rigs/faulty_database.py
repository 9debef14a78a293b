"""Backends of databases in which the test decides what fails: it wraps the real one, and every statement goes there."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Executable

from pupitre.errors import Unavailable
from pupitre.store.sql.dialect import Dialect, DriverConnection
from pupitre.store.sql.engine import BACKENDS, Backend, Options
from pupitre.store.sql.statement import Result, Values

Written = list[tuple[Executable, Values | Sequence[Values] | None]]
"""Statements of one transaction, with their values."""


async def _nothing(statement: Executable) -> None:
    """No more happens after a statement."""


class FaultyConnection:
    """A connection of the real backend."""

    def __init__(self, real: DriverConnection, faults: "Faults") -> None:
        self.real = real
        self._faults = faults
        self._written: Written = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        result = await self.real.execute(statement, values)
        self._written.append((statement, values))
        await self._faults.after_statement(statement)
        return result

    async def commit(self, topics: Sequence[str]) -> None:
        """Commit; then the answer may be lost."""
        await self.real.commit(topics)
        if self._faults.loses(self._written):
            self._faults.lost += 1
            raise Unavailable("The answer is lost.")


class _Pool:
    def __init__(self, real: Any, faults: "Faults") -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def take(self, first: Callable[[DriverConnection], Awaitable[Any]]) -> tuple[FaultyConnection, Any]:
        connection, result = await self._real.take(first)
        return FaultyConnection(connection, self._faults), result

    async def give(self, connection: FaultyConnection) -> None:
        await self._real.give(connection.real)


class _FaultyDialect:
    def __init__(self, real: Dialect, faults: "Faults") -> None:
        self._real = real
        self.writing = _Pool(real.writing, faults)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Faults:
    """Faults of databases. ``loses`` decides by its statements whether the answer to a commit is lost."""

    def __init__(
        self,
        loses: Callable[[Written], bool] = lambda written: False,
        after_statement: Callable[[Executable], Awaitable[None]] = _nothing,
    ) -> None:
        self.loses = loses
        self.after_statement = after_statement
        self.lost = 0

    @contextmanager
    def injected(self, name: str) -> Iterator["Faults"]:
        """Databases called ``name`` that are opened inside the block have these faults, as long as they are open."""
        real = dict(BACKENDS)

        def faulty(kind: str) -> Backend:
            def open_dialect(url: URL, options: Options) -> Dialect:
                dialect = real[kind](url, options)
                ours = name in (url.database or "")
                return _FaultyDialect(dialect, self) if ours else dialect  # type: ignore[return-value]  # it delegates

            return open_dialect

        BACKENDS.update({kind: faulty(kind) for kind in real})
        try:
            yield self
        finally:
            BACKENDS.update(real)
