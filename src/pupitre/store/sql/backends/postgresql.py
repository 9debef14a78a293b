"""PostgreSQL, by asyncpg. NOTIFY goes with COMMIT, so that a ring is lost only with its commit.

A connection that the server closed while it rested in the pool is known without
asking the server, and is replaced unseen.
"""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import asyncpg
from sqlalchemy import URL, Executable

from pupitre.errors import SetupError
from pupitre.runtime.timeouts import timeout
from pupitre.store.sql.commit_listener import RemoteListener
from pupitre.store.sql.deadline import Deadline
from pupitre.store.sql.dialect import DriverConnection, Listening
from pupitre.store.sql.pool import Pool
from pupitre.store.sql.pooler import refuse_pooler, refused_by_pooler
from pupitre.store.sql.statement import Result, Statements, Values
from pupitre.timings import DATABASE_CLOSE, DATABASE_CONNECT, DATABASE_LISTENER_ANSWER, DATABASE_LISTENER_CHECK

_SESSION = {
    "application_name": "pupitre",
    "jit": "off",
    # An index answers each of our questions; but a plan that was made while its table was empty, and is kept with its
    # connection, would read the whole table until the next ANALYZE.
    "enable_seqscan": "off",
    "idle_in_transaction_session_timeout": "60s",
    "synchronous_commit": "on",
}
_MARKED = {name: _SESSION[name] for name in ("enable_seqscan", "jit", "synchronous_commit")}
"""Settings that show whether ours have reached the session."""
_ENDS_SESSIONS = frozenset({"25006", "25P03", "57P01", "57P02", "57P03", "57P04", "57P05"})
"""SQLSTATEs beside those of class 08 (the connection): it only reads, it shuts down, it has closed the connection."""
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class Postgres:
    def __init__(self, url: URL, *, patience: float, read_only: bool = False) -> None:
        url = url.set(drivername="postgresql+asyncpg")
        settings = _SESSION | {
            "lock_timeout": f"{int(patience / 3 * 1000)}ms",
            "statement_timeout": f"{int(patience * 1000)}ms",
        }
        if read_only:
            settings["default_transaction_read_only"] = "on"
        dialect = url.get_dialect()()
        _, address = dialect.create_connect_args(url)
        self._statements = Statements(dialect, arrays=True)
        self._where = f"{url.host}", f"{url.database}"
        # asyncpg's own limit on statements would wait for ever to have one cancelled by a server that hangs.
        self._arguments: dict[str, Any] = {**address, "server_settings": settings, "timeout": DATABASE_CONNECT}
        self._patience = patience
        self._checked = False
        self.reading: Pool[DriverConnection] = Pool(str(url.database), self._open)
        self.writing = self.reading
        self.turn = nullcontext()

    async def _open(self) -> DriverConnection:
        try:
            raw = await _connect(self._arguments)
        except asyncpg.PostgresError as error:
            raise refused_by_pooler(error, self._arguments) or error from error
        try:
            if not self._checked:
                await self._check(raw)
        except BaseException:
            raw.terminate()
            raise
        self._checked = True
        return PostgresConnection(raw, self._statements, self._patience)

    async def _check(self, raw: "asyncpg.Connection[asyncpg.Record]") -> None:
        await refuse_pooler(raw, self._arguments, _MARKED)
        with Deadline(DATABASE_CONNECT, raw.terminate):
            fsync = await raw.fetchval("SHOW fsync")
        if fsync != "on":
            raise SetupError(
                f"PostgreSQL at {self._where[0]} does not put commits on disk (fsync is off).",
                "Set fsync = on in postgresql.conf and restart it.",
            )

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, asyncpg.IntegrityConstraintViolationError)

    def is_about_a_value(self, error: Exception) -> bool:
        return isinstance(error, asyncpg.DataError | asyncpg.exceptions.DataError) or str(
            getattr(error, "sqlstate", "")
        ).startswith("22")

    def is_failure(self, error: Exception) -> bool:
        return isinstance(error, _FAILURES)

    def ends_sessions(self, error: Exception) -> bool:
        state = str(getattr(error, "sqlstate", None) or "")
        return state in _ENDS_SESSIONS or state.startswith("08")

    def announced(self, topics: Sequence[str]) -> None:
        pass

    def listen(self, topic: str) -> Listening:
        return PostgresListener(self._where[1], self._arguments, topic)

    async def close(self) -> None:
        await self.writing.close()


async def _connect(arguments: dict[str, Any]) -> "asyncpg.Connection[asyncpg.Record]":
    with Deadline(DATABASE_CONNECT + 1):
        return await asyncpg.connect(**arguments)


class PostgresConnection:
    kind = "postgresql"

    def __init__(self, raw: "asyncpg.Connection[asyncpg.Record]", statements: Statements, patience: float) -> None:
        self._raw = raw
        self._statements = statements
        self._begun = False
        self._is_retired = False
        # The server itself ends a statement before.
        self._deadline = Deadline(patience + 1, raw.terminate)

    def is_lost(self) -> bool:
        return self._is_retired or self._raw.is_closed()

    def retire(self) -> None:
        self._is_retired = True

    async def begin(self, *, write: bool) -> None:
        # Writers see what was committed before each statement: the counter's row has put them in order.
        await self._say("BEGIN" if write else "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        self._begun = True

    async def _say(self, text: str) -> None:
        with self._deadline:
            await self._raw.execute(text)

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        with self._deadline:
            return await self._execute(statement, values)

    async def _execute(self, statement: Executable, values: Values | Sequence[Values] | None) -> Result:
        if isinstance(values, Sequence):
            prepared = self._statements.prepare(statement, values[0])
            sets = [prepared.arguments(one) for one in values]
            if prepared.text_of_many is None:
                await self._raw.executemany(prepared.text, sets)
            else:
                await self._raw.execute(prepared.text_of_many, *zip(*sets, strict=True))
            return Result()
        prepared = self._statements.prepare(statement, values or {})
        arguments = prepared.arguments(values or {})
        if not prepared.returns:
            tag = await self._raw.execute(prepared.text, *arguments)
            number = tag.rpartition(" ")[2]
            return Result(rowcount=int(number) if number.isdecimal() else -1)
        records = await self._raw.fetch(prepared.text, *arguments)
        return prepared.result(records, records[0].keys() if records else (), len(records))

    async def commit(self, topics: Sequence[str]) -> None:
        if self._begun:
            # In one round trip. Topics are names of ours.
            await self._say("".join(f'NOTIFY "{topic}"; ' for topic in topics) + "COMMIT")
            self._begun = False

    async def rollback(self) -> None:
        if self._begun:
            self._begun = False
            await self._say("ROLLBACK")

    def abandon(self) -> None:
        self._raw.terminate()

    async def close(self) -> None:
        try:
            with Deadline(DATABASE_CLOSE, self._raw.terminate):
                await self._raw.close()
        except _FAILURES:
            self._raw.terminate()


class PostgresListener(RemoteListener):
    """LISTEN on a connection of its own."""

    errors = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)

    def __init__(self, database: str, arguments: dict[str, Any], topic: str) -> None:
        super().__init__(f"{database}, {topic}")
        self._arguments = arguments
        self._topic = topic

    async def _follow(self) -> None:
        connection = await _connect(self._arguments)
        try:
            deadline = Deadline(DATABASE_LISTENER_ANSWER, connection.terminate)
            lost = asyncio.Event()
            connection.add_termination_listener(lambda *_: lost.set())
            with deadline:
                await connection.add_listener(self._topic, lambda *_: self._ring())
            self._begun()
            await _until_lost(connection, deadline, lost)
        finally:
            connection.terminate()


async def _until_lost(
    connection: "asyncpg.Connection[asyncpg.Record]", deadline: Deadline, lost: asyncio.Event
) -> None:
    while not lost.is_set():
        try:
            async with timeout(DATABASE_LISTENER_CHECK):
                await lost.wait()
        except TimeoutError:
            with deadline:
                await connection.execute("SELECT 1")
