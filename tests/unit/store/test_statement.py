"""Statements in the words of each database, written once where they are kept; connections, a few and none stale."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import URL, bindparam, insert, select, tuple_, update

from pupitre.errors import Unavailable
from pupitre.store.schema import cluster_hosts, commands, copies, gates
from pupitre.store.sql.pool import SIZE, Pool
from pupitre.store.sql.statement import Statements
from pupitre.store.sql.upsert import _statement as upsert
from pupitre.timings import POOL_WAIT

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mariadb+asyncmy"}
SOME = select(commands.c.id).where(
    commands.c.id.in_(bindparam("ids", expanding=True)),
    commands.c.created > bindparam("after"),
    commands.c.state.not_in(["failed", "sent"]),
)
SOME_USERS = gates.c.user_id.in_(bindparam("users", expanding=True))


def statements(kind: str) -> Statements:
    return Statements(URL.create(DRIVERS[kind]).get_dialect()(), arrays=kind == "postgresql")


def test_lists_are_arrays_where_there_are_any() -> None:
    prepared = statements("postgresql").prepare(SOME, {"ids": ["a"], "after": 3})
    assert "commands.id = ANY ($2::VARCHAR[])" in prepared.text
    assert "commands.state <> ALL ($3::VARCHAR[])" in prepared.text
    assert "commands.created > $1::BIGINT" in prepared.text
    assert prepared.arguments({"ids": ["a", "b"], "after": 3}) == [3, ["a", "b"], ["failed", "sent"]]
    assert prepared.expanded({"ids": []}, "?") is prepared.text


@pytest.mark.parametrize(("kind", "mark"), [("sqlite", "?"), ("mariadb", "%s")])
def test_elsewhere_each_value_of_a_list_stands_alone(kind: str, mark: str) -> None:
    values = {"ids": ["a", "b"], "after": 3}
    prepared = statements(kind).prepare(SOME, values)
    text = prepared.expanded(values, mark)
    assert f"commands.id IN ({mark}, {mark})" in text
    assert f"commands.state NOT IN ({mark}, {mark})" in text
    assert prepared.arguments(values) == ["a", "b", 3, "failed", "sent"]
    nothing = {"ids": [], "after": 3}
    assert "commands.id IN (SELECT 1" in prepared.expanded(nothing, mark)
    assert prepared.arguments(nothing) == [3, "failed", "sent"]


def test_a_statement_that_is_kept_is_written_once_for_each_set_of_names() -> None:
    held = statements("postgresql")
    assert held.prepare(SOME, {"ids": [], "after": 1}) is held.prepare(SOME, {"ids": ["b"], "after": 2})
    add = insert(gates)
    assert held.prepare(add, {"user_id": "a"}) is not held.prepare(add, {"user_id": "a", "last": 1})


def test_many_rows_are_one_insert_of_arrays() -> None:
    statement = upsert("postgresql", gates, ("user_id", "last"))
    prepared = statements("postgresql").prepare(statement, {"user_id": "a", "last": 1})
    assert prepared.text_of_many is not None
    assert "SELECT * FROM unnest($1::VARCHAR[], $2::BIGINT[]) ON CONFLICT" in prepared.text_of_many
    assert statements("sqlite").prepare(upsert("sqlite", gates, ("user_id",)), {"user_id": "a"}).text_of_many is None


def test_many_changes_are_one_update_from_arrays() -> None:
    change = update(gates).where(gates.c.user_id == bindparam("user")).values(last=bindparam("at"))
    values = {"user": "a", "at": 1}
    prepared = statements("postgresql").prepare(change, values)
    assert prepared.text_of_many == (
        "UPDATE gates SET last=many.v1"
        " FROM unnest($1::BIGINT[], $2::VARCHAR[]) AS many(v1, v2) WHERE gates.user_id = many.v2"
    )
    assert prepared.arguments(values) == [1, "a"]
    for other in (change.returning(gates.c.last), update(gates).values(last=1), update(gates).where(SOME_USERS)):
        assert statements("postgresql").prepare(other, {}).text_of_many is None
    assert statements("sqlite").prepare(change, values).text_of_many is None


@pytest.mark.parametrize("kind", DRIVERS)
def test_rows_have_names_and_truth_is_true_or_false(kind: str) -> None:
    query = select(cluster_hosts.c.name, cluster_hosts.c.edition)
    (row,) = statements(kind).prepare(query, {}).result([("host-1", 1 if kind != "postgresql" else True)])
    assert (row.name, row.edition) == ("host-1", True)
    assert row.edition is True


def test_keys_of_several_columns_are_written_for_the_call() -> None:
    query = select(copies.c.name).where(tuple_(copies.c.host, copies.c.image).in_([("a", "b"), ("c", "d")]))
    for kind in DRIVERS:
        prepared = statements(kind).prepare(query, {})
        assert prepared.arguments({}) == ["a", "b", "c", "d"]
        assert "POSTCOMPILE" not in prepared.expanded({}, "?")


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
async def test_whoever_fails_or_is_cancelled_at_the_beginning_leaves_its_place_to_others() -> None:
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
