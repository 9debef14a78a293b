"""PostgreSQL, by asyncpg. NOTIFY goes with COMMIT, so that a ring is lost only with its commit.

A connection that the server closed while it rested in the pool is known without
asking the server, and is replaced unseen.
"""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import (
    URL,
    BindParameter,
    Column,
    Executable,
    Insert,
    String,
    Table,
    TupleType,
    Update,
    all_,
    any_,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.asyncpg import PGCompiler_asyncpg, PGDialect_asyncpg
from sqlalchemy.sql.sqltypes import NullType
from sqlalchemy.sql.visitors import replacement_traverse

from pupitre.errors import SetupError
from pupitre.runtime.timeouts import timeout
from pupitre.store.sql.commit_listener import RemoteListener
from pupitre.store.sql.deadline import Deadline
from pupitre.store.sql.dialect import DriverConnection, Listening
from pupitre.store.sql.pool import Pool
from pupitre.store.sql.pooler import refuse_pooler, refused_by_pooler
from pupitre.store.sql.statement import Prepared, Result, Statements, Values, returning
from pupitre.store.sql.upsert import insert_or_update
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


class ArrayCompiler(PGCompiler_asyncpg):
    """``IN`` and ``NOT IN`` as comparisons with one array: one text for lists of every length."""

    def visit_in_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        if (array := _array_of(binary.right)) is None:
            return self._generate_generic_binary(binary, " IN ", **options)
        return self.process(binary.left == any_(array), **options)

    def visit_not_in_op_binary(self, binary: Any, operator: Any, **options: Any) -> str:
        if (array := _array_of(binary.right)) is None:
            return f"({self._generate_generic_binary(binary, ' NOT IN ', **options)})"
        return self.process(binary.left != all_(array), **options)


def _array_of(right: Any) -> BindParameter[Any] | None:
    """The list as one value; None for a list of tuples."""
    if not isinstance(right, BindParameter) or not right.expanding or isinstance(right.type, TupleType):
        return None
    kind = _array_type(right.type)
    return bindparam(None, right.value, type_=kind, unique=True) if right.unique else bindparam(right.key, type_=kind)


def _array_type(kind: Any) -> ARRAY[Any]:
    # Without a length: a cast to one would cut what is longer, without a word.
    return ARRAY(String() if isinstance(kind, String) else kind)


class PostgresStatements(Statements):
    """Lists are arrays, and a change of many rows is one statement."""

    def __init__(self) -> None:
        dialect = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
        dialect.statement_compiler = ArrayCompiler
        super().__init__(dialect)
        self._many: WeakKeyDictionary[Executable, dict[tuple[str, ...], Prepared | None]] = WeakKeyDictionary()

    def prepare_many(self, statement: Any, values: Values) -> Prepared | None:
        """Statement for lists of values in place of one for each row; None where it is no such change."""
        forms = self._many.get(statement)
        if forms is None:
            forms = self._many[statement] = {}
        names = tuple(values)
        if names not in forms:
            many = _many(statement, names, self.prepare(statement, values))
            forms[names] = None if many is None else self._compile(many, ())
        return forms[names]


def _many(statement: Any, names: tuple[str, ...], prepared: Prepared) -> Executable | None:
    """One statement for many rows: to the server, each row costs a third of a statement for each row."""
    binds = {name: prepared.compiled.binds[name] for name in prepared.order}
    has_lists = any(isinstance(bind.type, ARRAY | NullType) for bind in binds.values())
    if prepared.returns or prepared.lists or has_lists:
        return None
    arrays = [bindparam(name, type_=_array_type(bind.type)) for name, bind in binds.items()]
    columns = [column(name, bind.type) for name, bind in binds.items()]
    rows = func.unnest(*arrays).table_valued(*columns).render_derived(name="many")
    if isinstance(statement, Insert):
        return statement.from_select(list(binds), select(*(rows.c[name] for name in binds)))
    if not isinstance(statement, Update) or not set(binds) <= set(names):
        return None

    def replace(element: Any, **_options: Any) -> Any:
        return rows.c[element.key] if isinstance(element, BindParameter) and element.key in binds else None

    return cast(Executable, replacement_traverse(statement, {}, replace))


class Postgres:
    def __init__(self, url: URL, *, patience: float, read_only: bool = False) -> None:
        url = url.set(drivername="postgresql+asyncpg")
        settings = _SESSION | {
            "lock_timeout": f"{int(patience / 3 * 1000)}ms",
            "statement_timeout": f"{int(patience * 1000)}ms",
        }
        if read_only:
            settings["default_transaction_read_only"] = "on"
        self._statements = PostgresStatements()
        _, address = self._statements.dialect.create_connect_args(url)
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

    def notify(self, topics: Sequence[str]) -> None:
        pass

    def listen(self, topic: str) -> Listening:
        return PostgresListener(self._where[1], self._arguments, topic)

    async def close(self) -> None:
        await self.writing.close()


async def _connect(arguments: dict[str, Any]) -> "asyncpg.Connection[asyncpg.Record]":
    with Deadline(DATABASE_CONNECT + 1):
        return await asyncpg.connect(**arguments)


class PostgresConnection:
    def __init__(
        self, raw: "asyncpg.Connection[asyncpg.Record]", statements: PostgresStatements, patience: float
    ) -> None:
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
            if (many := self._statements.prepare_many(statement, values[0])) is None:
                prepared = self._statements.prepare(statement, values[0])
                await self._raw.executemany(prepared.text, [prepared.arguments(one) for one in values])
            else:
                defaults = self._statements.prepare(statement, values[0]).defaults
                given = [{**defaults, **one} for one in values]
                await self._raw.execute(many.text, *([one[name] for one in given] for name in many.order))
            return Result()
        prepared = self._statements.prepare(statement, values or {})
        text, arguments = prepared.form(values or {})
        if not prepared.returns:
            tag = await self._raw.execute(text, *arguments)
            number = tag.rpartition(" ")[2]
            return Result(rowcount=int(number) if number.isdecimal() else -1)
        records = await self._raw.fetch(text, *arguments)
        return prepared.result(records, records[0].keys() if records else (), len(records))

    async def change_and_read(self, change: Update, column: Column[Any], values: Values | None = None) -> Any:
        return (await self.execute(returning(change, column), values)).scalar()

    def upsert(self, table: Table, names: tuple[str, ...]) -> Executable:
        return _upsert(table, names)

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
                await connection.add_listener(self._topic, lambda *_: self._notify())
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


@lru_cache
def _upsert(table: Table, names: tuple[str, ...]) -> Executable:
    return insert_or_update(postgresql.insert(table), table, names)
