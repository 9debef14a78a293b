"""Faults 7 and 10: a database that restarts, dies at the commit, or has no disk left."""

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import uuid_utils
from sqlalchemy import insert, select

from pupitre.domain.command import BootDesktop, Command, CommandState
from pupitre.errors import Unavailable
from pupitre.store.commands import ASKED, Commands
from pupitre.store.new_commands import NewCommand
from pupitre.store.schema import gates
from tests import ROOT
from tests.rigs import databases
from tests.rigs.database_servers import Provisioned

pytestmark = pytest.mark.anyio

PATIENCE = 60


def new_id() -> str:
    return str(uuid_utils.uuid7())


async def restart(provisioned: Provisioned) -> None:
    """As after a power cut: nothing was written or said at the end."""
    await asyncio.to_thread(provisioned.server.crash)
    await asyncio.to_thread(provisioned.server.start)


async def test_restart_under_load_loses_no_acknowledged_write(tmp_path: Path, each_server: Provisioned) -> None:
    """A restart under load loses nothing that was acknowledged."""
    acknowledged: list[str] = []
    refused = 0
    more = asyncio.Condition()
    back = asyncio.Event()
    ended = False

    async def write(commands: Commands) -> None:
        nonlocal refused
        while not ended:
            command = Command(new_id(), new_id(), BootDesktop(new_id(), "plain"), CommandState.QUEUED, 1, 2)
            try:
                await commands.request(NewCommand(command))
                acknowledged.append(command.id)
            except Unavailable:
                refused += 1
                await back.wait()
            async with more:
                more.notify_all()

    async def reach(count: int) -> None:
        async with asyncio.timeout(PATIENCE), more:
            await more.wait_for(lambda: len(acknowledged) >= count)

    async with databases.commands(tmp_path) as commands, databases.commands(tmp_path) as other:
        async with other.database.listen(ASKED) as listener, asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(write(commands))
            for _ in range(3):
                await reach(len(acknowledged) + 30)
                back.clear()
                await restart(each_server)
                back.set()
                async with asyncio.timeout(PATIENCE):
                    await listener.wait()
            await reach(len(acknowledged) + 30)
            ended = True
        kept = {command.id for command in await commands.unfinished()}
    assert refused, "the restarts hit nobody: this shows nothing"
    assert set(acknowledged) <= kept


async def test_a_listener_hears_again_after_a_restart(tmp_path: Path, each_server: Provisioned) -> None:
    async with databases.commands(tmp_path) as commands, commands.database.listen(ASKED) as listener:
        for _ in range(2):
            await restart(each_server)
            async with asyncio.timeout(PATIENCE):
                await listener.wait()  # something may have been missed
            command = Command(new_id(), new_id(), BootDesktop(new_id(), "plain"), CommandState.QUEUED, 1, 2)
            await commands.request(NewCommand(command))
            async with asyncio.timeout(PATIENCE):
                await listener.wait()


async def test_listener_hears_when_database_is_back(tmp_path: Path, each_server: Provisioned) -> None:
    """Who listens while the database is away hears when it is back."""
    async with databases.commands(tmp_path) as commands:
        await asyncio.to_thread(each_server.server.crash)
        try:
            async with asyncio.timeout(PATIENCE), commands.database.listen(ASKED) as listener:
                with pytest.raises(Unavailable, match="pupitre_commands does not answer"):
                    await commands.unfinished()
                await asyncio.to_thread(each_server.server.start)
                await listener.wait()
                assert await commands.unfinished() == []
        finally:
            await asyncio.to_thread(each_server.server.start)


async def test_idle_connections_are_replaced_after_restart(tmp_path: Path, each_server: Provisioned) -> None:
    """Connections that rested over a restart are replaced unseen."""
    async with databases.commands(tmp_path) as commands:
        ids = itertools.count()

        async def use() -> None:
            async with commands.database.write() as connection:
                await connection.execute(insert(gates).values(user_id=str(next(ids)), last=1))
            await commands.unfinished()

        await asyncio.gather(*(use() for _ in range(4)))
        await restart(each_server)
        await asyncio.gather(*(use() for _ in range(8)))
        async with commands.database.read() as connection:
            assert len(await connection.execute(select(gates))) == 12


async def test_a_commit_that_fails_is_not_acknowledged(tmp_path: Path, each_server: Provisioned) -> None:
    async with databases.commands(tmp_path) as commands:
        try:
            with pytest.raises(Unavailable, match="does not take the change"):
                async with commands.database.write(ASKED) as connection:
                    await connection.execute(insert(gates).values(user_id="a", last=1))
                    await asyncio.to_thread(each_server.server.crash)
        finally:
            await asyncio.to_thread(each_server.server.start)
        async with commands.database.read() as connection:
            assert await connection.execute(select(gates)) == []


FULL = """
import asyncio, sys
from pathlib import Path
from pupitre.errors import Unavailable
from sqlalchemy import insert, select
from pupitre.store.schema import gates
from tests.rigs import databases

async def main(folder):
    ballast = folder / "ballast"
    async with databases.database(folder, "commands") as database:
        ballast.write_bytes(bytes(600_000))
        written, refused = [], 0
        for number in range(100_000):
            try:
                async with database.write() as connection:
                    await connection.execute(insert(gates).values(user_id=str(number), last=1))
                written.append(str(number))
            except Unavailable as error:
                refused += 1
                print(error)
                if refused == 3:
                    break
        ballast.unlink()
        async with database.write() as connection:
            await connection.execute(insert(gates).values(user_id="after", last=1))
        async with database.read() as connection:
            kept = set((await connection.execute(select(gates.c.user_id))).scalars())
        assert refused == 3, "the disk did not get full"
        assert kept == {*written, "after"}, (len(kept), len(written))
        print("kept", len(written))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite on a small file system of its own, which is gone with its process."""
    program = tmp_path / "full.py"
    program.write_text(FULL)
    small = tmp_path / "small"
    small.mkdir()
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    script = 'mount -t tmpfs -o size=1500k pupitre "$1" && exec "$2" "$3" "$1"'
    done = subprocess.run(
        [*apart, "sh", "-c", script, "sh", small, sys.executable, program],
        check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not take the change: database or disk is full" in done.stdout
    assert "kept" in done.stdout
