"""Statements in the words of each database, written once where they are kept; connections, a few and none stale."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from sqlalchemy import URL, Dialect, Executable, bindparam, insert, select, tuple_, update

from pupitre.errors import Unavailable
from pupitre.store.schema import cluster_hosts, commands, copies, gates
from pupitre.store.sql.backends import mariadb, postgresql, sqlite
from pupitre.store.sql.backends.postgresql import PostgresStatements
from pupitre.store.sql.pool import SIZE, Pool
from pupitre.store.sql.statement import MOST_FORMS, Statements
from pupitre.timings import POOL_WAIT


def _dialect(driver: str) -> Dialect:
    made: Any = URL.create(driver).get_dialect()
    return cast(Dialect, made())


BACKENDS: dict[str, tuple[Callable[[], Statements], Any]] = {
    "sqlite": (lambda: Statements(_dialect("sqlite")), sqlite._upsert),
    "postgresql": (PostgresStatements, postgresql._upsert),
    "mariadb": (lambda: Statements(_dialect("mariadb+asyncmy")), mariadb._upsert),
}
SOME = select(commands.c.id).where(
    commands.c.id.in_(bindparam("ids", expanding=True)),
    commands.c.created > bindparam("after"),
    commands.c.state.not_in(["failed", "sent"]),
)
SOME_USERS = gates.c.user_id.in_(bindparam("users", expanding=True))


def statements(kind: str) -> Statements:
    return BACKENDS[kind][0]()


def upsert(kind: str, names: tuple[str, ...]) -> Executable:
    found: Executable = BACKENDS[kind][1](gates, names)
    return found


def test_lists_are_arrays_on_postgresql() -> None:
    prepared = statements("postgresql").prepare(SOME, {"ids": ["a"], "after": 3})
    assert "commands.id = ANY ($1::VARCHAR[])" in prepared.text
    assert "commands.created > $2::BIGINT" in prepared.text
    assert "commands.state != ALL ($3::VARCHAR[])" in prepared.text
    assert prepared.form({"ids": ["a", "b"], "after": 3}) == (prepared.text, [["a", "b"], 3, ["failed", "sent"]])
    assert prepared.form({"ids": [], "after": 3})[0] is prepared.text


@pytest.mark.parametrize(("kind", "mark"), [("sqlite", "?"), ("mariadb", "%s")])
def test_elsewhere_each_value_of_a_list_stands_alone(kind: str, mark: str) -> None:
    prepared = statements(kind).prepare(SOME, {"ids": [], "after": 3})
    for ids in (["a", "b"], ["c", "d"]):
        text, arguments = prepared.form({"ids": ids, "after": 3})
        assert f"commands.id IN ({mark}, {mark})" in text
        assert f"commands.state NOT IN ({mark}, {mark})" in text
        assert arguments == [*ids, 3, "failed", "sent"]
    text, arguments = prepared.form({"ids": [], "after": 3})
    assert text.count(mark) == len(arguments)
    assert arguments == [3, "failed", "sent"]


def test_texts_for_many_lengths_are_bounded() -> None:
    prepared = statements("sqlite").prepare(SOME, {"ids": [], "after": 3})
    for length in range(2 * MOST_FORMS):
        text, arguments = prepared.form({"ids": ["a"] * length, "after": 3})
        assert text.count("?") == len(arguments)
    assert len(prepared._forms) <= MOST_FORMS


def test_kept_statement_is_compiled_once_for_each_set_of_names() -> None:
    held = statements("postgresql")
    assert held.prepare(SOME, {"ids": [], "after": 1}) is held.prepare(SOME, {"ids": ["b"], "after": 2})
    add = insert(gates)
    assert held.prepare(add, {"user_id": "a"}) is not held.prepare(add, {"user_id": "a", "last": 1})


def test_many_rows_are_one_insert_of_arrays() -> None:
    values = {"user_id": "a", "last": 1}
    many = PostgresStatements().prepare_many(upsert("postgresql", ("user_id", "last")), values)
    assert many is not None
    assert "FROM unnest($1::VARCHAR[], $2::BIGINT[]) AS many(user_id, last) ON CONFLICT" in many.text
    assert many.order == ("user_id", "last")


def test_many_changes_are_one_update_from_arrays() -> None:
    change = update(gates).where(gates.c.user_id == bindparam("user")).values(last=bindparam("at"))
    values = {"user": "a", "at": 1}
    many = PostgresStatements().prepare_many(change, values)
    assert many is not None
    assert many.text == (
        'UPDATE gates SET last=many.at FROM unnest($1::BIGINT[], $2::VARCHAR[]) AS many(at, "user")'
        ' WHERE gates.user_id = many."user"'
    )
    assert many.order == ("at", "user")
    for other in (change.returning(gates.c.last), update(gates).values(last=1), update(gates).where(SOME_USERS)):
        assert PostgresStatements().prepare_many(other, values) is None


@pytest.mark.parametrize("kind", BACKENDS)
def test_rows_have_names_and_truth_is_true_or_false(kind: str) -> None:
    query = select(cluster_hosts.c.name, cluster_hosts.c.edition)
    (row,) = statements(kind).prepare(query, {}).result([("host-1", 1 if kind != "postgresql" else True)])
    assert (row.name, row.edition) == ("host-1", True)
    assert row.edition is True


def test_keys_of_several_columns_are_written_for_the_call() -> None:
    query = select(copies.c.name).where(tuple_(copies.c.host, copies.c.image).in_([("a", "b"), ("c", "d")]))
    for kind in BACKENDS:
        prepared = statements(kind).prepare(query, {})
        text, arguments = prepared.form({})
        assert arguments == ["a", "b", "c", "d"]
        assert "POSTCOMPILE" not in text


class Line:
    """A connection that is lost when ``lost`` says so."""

    def __init__(self) -> None:
        self.lost = False
        self.closed = False

    def is_lost(self) -> bool:
        return self.lost

    def abandon(self) -> None:
        self.lost = True

    def retire(self) -> None:
        self.lost = True

    async def close(self) -> None:
        self.closed = True


async def no_begin(_line: Line) -> None:
    return None


class Lines:
    def __init__(self, patience: float = POOL_WAIT) -> None:
        self.opened: list[Line] = []
        self.pool: Pool[Line] = Pool("lines", self._open, patience=patience)

    async def _open(self) -> Line:
        self.opened.append(Line())
        return self.opened[-1]

    async def take(self, begin: Callable[[Line], object] = no_begin) -> Line:
        line, _ = await self.pool.take(begin)  # type: ignore[arg-type]
        return line


@pytest.mark.anyio
async def test_the_warmest_connection_comes_first_and_a_lost_one_never() -> None:
    lines = Lines()
    first, second = await lines.take(), await lines.take()
    await lines.pool.give(first)
    await lines.pool.give(second)
    assert await lines.take() is second
    second.lost = True
    await lines.pool.give(second)
    assert second.closed
    first.lost = True
    third = await lines.take()
    assert third not in (first, second)
    assert first.closed
    await lines.pool.give(third)
    await lines.pool.close()
    assert third.closed


@pytest.mark.anyio
async def test_one_that_turns_out_to_be_stale_is_replaced_unseen() -> None:
    lines = Lines()
    stale = await lines.take()
    await lines.pool.give(stale)

    async def begin(line: Line) -> None:
        if line is stale:
            line.lost = True
            raise OSError("gone")

    fresh = await lines.take(begin)
    assert fresh is not stale
    assert stale.closed


@pytest.mark.anyio
async def test_failed_begin_leaves_its_turn_to_others() -> None:
    """Whoever fails or is cancelled at the beginning leaves its place to others."""
    lines = Lines()

    async def fail(_line: Line) -> None:
        raise ValueError

    async def hang(_line: Line) -> None:
        await asyncio.Event().wait()

    for _ in range(SIZE + 1):
        with pytest.raises(ValueError):
            await lines.take(fail)
        hanging = asyncio.create_task(lines.take(hang))
        await asyncio.sleep(0)
        hanging.cancel()
        await asyncio.wait([hanging])
    assert all(line.closed for line in lines.opened)
    assert [await lines.take() for _ in range(SIZE)]


@pytest.mark.anyio
async def test_who_waits_too_long_for_a_connection_is_told_so() -> None:
    lines = Lines(patience=0.05)
    held = [await lines.take() for _ in range(SIZE)]
    with pytest.raises(Unavailable, match="The database lines has too much to do"):
        await lines.take()
    await lines.pool.give(held[0])
    assert await lines.take() is held[0]
