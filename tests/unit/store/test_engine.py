"""One surface on three databases: errors, one consistent look, news, many rows at once."""

import asyncio
from contextlib import nullcontext
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update

from pupitre.errors import Conflict, Invalid, Unavailable
from pupitre.store.schema import commands_counter, gates, users
from pupitre.store.sql.engine import Database, next_version
from pupitre.store.sql.upsert import upsert_rows
from tests.rigs import databases

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]

PATIENCE = 20


async def counted(database: Database) -> dict[str, int]:
    async with database.read() as connection:
        rows = await connection.execute(select(gates.c.user_id, gates.c.last))
        return {row.user_id: row.last for row in rows}


async def test_what_fails_within_changes_nothing(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "commands") as database:
        with pytest.raises(Conflict, match="already one"):
            async with database.write() as connection:
                await connection.execute(insert(gates).values(user_id="a", last=1))
                await connection.execute(insert(gates).values(user_id="a", last=2))
        with pytest.raises(ZeroDivisionError):
            async with database.write() as connection:
                await connection.execute(insert(gates).values(user_id="a", last=1 // 0))
        assert await counted(database) == {}


async def test_what_no_row_can_hold_is_the_askers_fault(tmp_path: Path, each_database: str) -> None:
    long = "x" * 50
    async with databases.database(tmp_path, "commands") as database:
        with nullcontext() if each_database == "sqlite" else pytest.raises(Invalid, match="cannot hold that value"):
            async with database.write() as connection:
                await connection.execute(insert(gates).values(user_id=long, last=1))
        # SQLite holds anything.
        assert await counted(database) == ({long: 1} if each_database == "sqlite" else {})


async def test_a_read_is_one_consistent_look(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "commands") as database:
        async with database.read() as connection:
            first = (await connection.execute(select(commands_counter.c.value))).scalar_one()
            async with database.write() as other:
                await next_version(other, commands_counter)
                await other.execute(insert(gates).values(user_id="a", last=1))
            assert (await connection.execute(select(commands_counter.c.value))).scalar_one() == first
            assert (await connection.execute(select(func.count()).select_from(gates))).scalar_one() == 0
        assert await counted(database) == {"a": 1}


async def test_who_may_only_read_changes_nothing(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "commands", read_only=True) as database:
        with pytest.raises(Unavailable, match=r"(?i)does not take the change: .*read.?only"):
            async with database.write() as connection:
                await connection.execute(update(commands_counter).values(value=9))


async def test_versions_are_taken_in_the_order_of_their_commits(tmp_path: Path) -> None:
    seen: list[int] = []

    async def write(database: Database) -> None:
        async with database.write() as connection:
            version = await next_version(connection, commands_counter)
            await asyncio.sleep(0)
            seen.append(version)

    async with databases.database(tmp_path, "commands") as one, databases.database(tmp_path, "commands") as other:
        await asyncio.gather(*(write(database) for database in (one, other) * 20))
    assert seen == sorted(set(seen))
    assert len(seen) == 40


async def test_a_commit_wakes_who_listens_and_a_failure_nobody(tmp_path: Path) -> None:
    async with (
        databases.database(tmp_path, "commands") as here,
        databases.database(tmp_path, "commands", "endpoint") as there,
        there.listen("asked") as listener,
    ):
        with pytest.raises(ZeroDivisionError):
            async with here.write("asked") as connection:
                await next_version(connection, commands_counter)
                raise ZeroDivisionError
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await listener.wait()
        for number in range(3):
            async with here.write("asked") as connection:
                await connection.execute(insert(gates).values(user_id=str(number), last=1))
            async with asyncio.timeout(PATIENCE):
                await listener.wait()


async def test_many_rows_at_once_are_added_or_changed(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "commands") as database:
        async with database.write() as connection:
            await upsert_rows(connection, gates, [])
            await upsert_rows(connection, gates, [{"user_id": f"{number:04}", "last": 1} for number in range(1500)])
        async with database.write() as connection:
            await upsert_rows(
                connection, gates, [{"user_id": f"{number:04}", "last": 2} for number in range(1000, 2000)]
            )
            await upsert_rows(connection, gates, [{"user_id": "0000", "last": 3}, {"user_id": "0000", "last": 4}])
        found = await counted(database)
    assert len(found) == 2000
    assert found["0000"] == 4
    assert [found[key] for key in ("0001", "0999", "1000", "1999")] == [1, 1, 2, 2]


async def test_names_are_compared_and_sorted_letter_by_letter(tmp_path: Path) -> None:
    names = ["Zoe", "anna", "Anna", "anna ", "Ärger", "ärger", "🦉"]
    async with databases.database(tmp_path, "accounts") as database:
        async with database.write() as connection:
            for name in names:
                await connection.execute(
                    insert(users).values(id=name, name=name, role="student", password_hash="", created=1)
                )
        async with database.read() as connection:
            found = (await connection.execute(select(users.c.name).order_by(users.c.name))).scalars()
    assert found == sorted(names)
