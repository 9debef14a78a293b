"""What runs in a machine whose power fails: it writes as Pupitre does, and says what it was told is on disk.

``python -m tests.rigs.power_loss_writer FOLDER`` goes on until the end, in a folder that `prepare` has made. It prints
``commands ID``, ``journal DESKTOP BOOT`` and ``careless NUMBER``; the last is SQLite without synchronous=FULL.
``python -m tests.rigs.power_loss_writer FOLDER ROUNDS`` does a few, and then names every file that this took.
"""

import asyncio
import itertools
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uuid_utils

from pupitre.domain.command import BootDesktop, Command, CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.host.journal import Journal, Record
from pupitre.runtime.clock import now_ms
from pupitre.store.commands import Commands
from pupitre.store.new_commands import NewCommand
from pupitre.store.sql.engine import Database

WRITERS = 3


def commands_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'commands.db'}"


def journal_path(folder: Path) -> Path:
    return folder / "journal.db"


def careless_path(folder: Path) -> Path:
    return folder / "careless.db"


def prepare(folder: Path) -> None:
    from pupitre.store.admin.migrate import upgrade

    upgrade("commands", commands_url(folder))
    with sqlite3.connect(careless_path(folder)) as careless:
        careless.execute("PRAGMA journal_mode = WAL")
        careless.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY)")
    careless.close()


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def new_id() -> str:
    return str(uuid_utils.uuid7())


async def work(folder: Path, rounds: int | None) -> None:
    database = Database(commands_url(folder), notify_dir=folder)
    commands, journal = Commands(database), Journal(journal_path(folder))
    careless = sqlite3.connect(careless_path(folder), isolation_level=None)
    careless.execute("PRAGMA synchronous = OFF")

    async def ask(_: int) -> None:
        now = now_ms()
        command = Command(new_id(), new_id(), BootDesktop(new_id(), "plain"), CommandState.QUEUED, now, now + 1000)
        await commands.request(NewCommand(command))
        say("commands", command.id)

    desktops = itertools.cycle([new_id() for _ in range(WRITERS * 2)])

    async def order(number: int) -> None:
        record = Record(next(desktops), number, DesktopState.RUNNING, DesktopState.REQUESTED)
        await journal.put(record)
        say("journal", record.desktop, record.boot)

    async def forget(number: int) -> None:
        careless.execute("INSERT INTO kept VALUES (?)", (number,))
        say("careless", number)
        await asyncio.sleep(0.01)

    async def again(one: Callable[[int], Awaitable[None]], numbers: Iterator[int]) -> None:
        for number in numbers:
            await one(number)
            if rounds and number >= rounds:
                return

    async with asyncio.TaskGroup() as tasks:
        for one, writers in ((ask, WRITERS), (order, WRITERS), (forget, 1)):
            numbers = itertools.count(1)
            for _ in range(writers):
                tasks.create_task(again(one, numbers))
    careless.close()
    await journal.close()
    await database.close()


def files() -> set[Path]:
    """Every module that was imported, and every library."""
    found = {Path(sys.executable).resolve()}
    for module in list(sys.modules.values()):
        for name in ("__file__", "__cached__"):
            found.add(Path(getattr(module, name, None) or sys.executable).resolve())
    with Path("/proc/self/maps").open() as maps:
        found |= {Path(line.split(maxsplit=5)[5].strip()) for line in maps if ".so" in line}
    return {path for path in found if path.is_file()}


if __name__ == "__main__":
    until = int(sys.argv[2]) if len(sys.argv) > 2 else None
    asyncio.run(work(Path(sys.argv[1]), until))
    say(*sorted(files()))
