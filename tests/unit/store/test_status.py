"""The database ``status``: rows as they are, versions that grow only with a change, and a portal that cannot write."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Executable, Table, Update, text

from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.status import ClusterLink, HostImage, Position, Rows
from pupitre.errors import SetupError, Unavailable
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.engine import Database
from pupitre.store.sql.statement import Result, Values
from pupitre.store.status import CHANGED, SeenKeys, Status
from tests.rigs import databases

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]

DESKTOP = Desktop("d1", "u1", "plain", "host-1", DesktopState.RUNNING, since=1, created=1, boot=1)
HOST = Host("host-1", HostState.READY, "127.0.0.1", 1, False, since=1)
COPY = HostImage("host-1", Image("plain", "Plain", "", CopyState.READY, since=1))
EVERYTHING = Rows((HOST,), (COPY,), (DESKTOP,))


async def test_the_portals_status_reads_and_refuses_writes(tmp_path: Path) -> None:
    odd = tmp_path / "a folder with ? and # and %20"
    odd.mkdir()
    async with databases.status(odd) as status, databases.status(odd, read_only=True) as portal:
        await status.apply("main", EVERYTHING)
        assert await portal.desktop("d1") == DESKTOP
        with pytest.raises(Unavailable, match="does not take the change"):
            await portal.apply("main", Rows())
        async with portal.database.read() as connection:
            with pytest.raises(Exception, match=r"(?i)read.?only"):
                await connection.execute(text("DELETE FROM desktops"))
        assert (await portal.everything()).rows == EVERYTHING


async def test_a_row_that_stays_as_it_is_keeps_its_version(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status:
        await status.apply("main", EVERYTHING)
        first = await status.changes(0)
        assert first.rows == EVERYTHING
        await status.apply("main", EVERYTHING)
        assert not (await status.changes(first.version)).rows
        failed = replace(DESKTOP, state=DesktopState.FAILED, reason="why")
        await status.apply("main", Rows(desktops=(failed,)))
        second = await status.changes(first.version)
        assert second.rows == Rows(desktops=(failed,))
        assert second.version > first.version


async def test_what_a_full_set_of_pages_does_not_name_is_gone(tmp_path: Path) -> None:
    other = replace(DESKTOP, id="d2")
    async with databases.status(tmp_path) as status:
        await status.apply("main", EVERYTHING)
        await status.apply("main", Rows(desktops=(other,)))
        await status.set_link(ClusterLink("main", True, 1))
        before = await status.changes(0)
        assert before.host_names == frozenset({"host-1"})
        named = SeenKeys()
        named.add(Rows(desktops=(other,)))
        await status.retain("main", named, Position(1, 7))
        assert await status.position("main") == Position(1, 7)
        after = await status.changes(before.version)
        assert after.host_names == frozenset()
        assert (await status.changes(after.version)).host_names is None
        assert after.rows.copies == (replace(COPY, gone=True),)
        assert [desktop.id for desktop in after.rows.desktops] == ["d1"]
        assert await status.images() == []
        everything = await status.everything()
        assert everything.rows == Rows(desktops=(other,))
        assert everything.version == after.version
        gone = await status.desktop("d1")
        assert gone is not None
        assert gone.state is DesktopState.GONE


async def test_the_link_is_written_when_it_changes_and_not_before(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status, status.database.listen(CHANGED) as listener:
        await status.set_link(ClusterLink("main", False, 1, "away"))
        await listener.wait()
        version = await status.version()
        await status.set_link(ClusterLink("main", False, 2, "away"))
        assert await status.version() == version
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listener.wait(), 0.05)
        await status.set_link(ClusterLink("main", False, 3, "still away"))
        assert await status.links() == [ClusterLink("main", False, 1, "still away")]
        await status.set_link(ClusterLink("main", True, 4))
        assert await status.links() == [ClusterLink("main", True, 4)]
        assert (await status.changes(version)).links == (ClusterLink("main", True, 4),)


async def test_when_the_cluster_was_heard_is_written_and_wakes_nobody(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status:
        await status.set_link(ClusterLink("main", True, 1))
        version = await status.version()
        async with status.database.listen(CHANGED) as listener:
            await status.heard("main", 17, Position(3, 4))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listener.wait(), 0.05)
        assert await status.links() == [ClusterLink("main", True, 1, heard=17)]
        assert await status.version() == version
        assert await status.position("main") == Position(3, 4)


class Overheard(Database):
    """Counts what it is told."""

    told = 0

    @asynccontextmanager
    async def write(self, *topics: str) -> AsyncIterator[Connection]:
        async with super().write(*topics) as connection:
            yield Told(self, connection)


class Told:
    def __init__(self, database: Overheard, connection: Connection) -> None:
        self._database = database
        self._connection = connection

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        self._database.told += 1
        return await self._connection.execute(statement, values)

    async def change_and_read(self, change: Update, column: Column[Any], values: Values | None = None) -> Any:
        self._database.told += 1
        return await self._connection.change_and_read(change, column, values)

    def upsert(self, table: Table, names: tuple[str, ...]) -> Executable:
        return self._connection.upsert(table, names)

    async def rollback(self) -> None:
        await self._connection.rollback()


async def test_cost_of_change_is_independent_of_row_count(tmp_path: Path) -> None:
    """What a change costs does not depend on how many rows it has or there are."""
    database = Overheard(databases.url(tmp_path, "status"), notify_dir=tmp_path / "notify")
    async with databases.closing(database):
        status = Status(database)
        many = tuple(replace(DESKTOP, id=f"d{number}") for number in range(400))

        async def cost(rows: tuple[Desktop, ...]) -> int:
            before = database.told
            await status.apply("main", Rows(desktops=rows))
            return database.told - before

        alone = await cost(many[:1])
        assert await cost(many) == alone
        assert await cost((replace(DESKTOP, id="d7", state=DesktopState.STOPPING),)) == alone
        assert await cost(many[:1]) == alone - 1  # nothing is new: nothing is written


async def test_position_is_written_with_its_rows(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status:
        assert await status.position("main") == Position()
        await status.set_link(ClusterLink("main", True, 1))
        await status.apply("main", EVERYTHING, Position(3, 14))
        assert await status.position("main") == Position(3, 14)


async def test_a_reader_of_changes_misses_none_while_many_write(tmp_path: Path) -> None:
    async with databases.status(tmp_path) as status, databases.status(tmp_path, read_only=True) as portal:
        rows = [replace(DESKTOP, id=f"d{number}") for number in range(40)]
        seen: dict[str, DesktopState] = {}
        last, finished = 0, False

        async def read() -> None:
            nonlocal last
            while True:
                over = finished
                found = await portal.changes(last)
                assert found.version >= last
                last = found.version
                seen.update({desktop.id: desktop.state for desktop in found.rows.desktops})
                if over:
                    return
                await asyncio.sleep(0)

        async def write(desktop: Desktop) -> None:
            for state in (DesktopState.RUNNING, DesktopState.STOPPING, DesktopState.GONE):
                await status.apply("main", Rows(desktops=(replace(desktop, state=state),)))

        reader = asyncio.create_task(read())
        await asyncio.gather(*(write(desktop) for desktop in rows))
        finished = True
        await reader
        assert seen == {desktop.id: DesktopState.GONE for desktop in rows}


def test_a_database_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="pupitre db create"):
        Database(f"sqlite+aiosqlite:///{tmp_path}/none.sqlite", notify_dir=tmp_path)
