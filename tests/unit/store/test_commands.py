"""The database ``commands``: interval, limit, life, versions, and what SIGKILL leaves."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import uuid_utils
from sqlalchemy import Executable, Select

from pupitre.domain.command import (
    COMMAND_LIFE,
    FINAL_STATES,
    BootDesktop,
    Command,
    CommandEvent,
    CommandState,
    DestroyDesktop,
    Fault,
)
from pupitre.domain.command_limits import DesktopQuota
from pupitre.errors import LimitReached, TooEarly
from pupitre.store.commands import Commands
from pupitre.store.new_commands import NewCommand
from tests import ROOT
from tests.rigs import databases
from tests.rigs.faulty_database import Faults

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]

USER = "0190aaaa-0000-7000-8000-000000000001"


QUOTA = DesktopQuota(1)


def new_id() -> str:
    return str(uuid_utils.uuid7())


def boot(user: str = USER, *, at: int = 1000) -> Command:
    return Command(new_id(), user, BootDesktop(new_id(), "plain"), CommandState.QUEUED, at, at + 1000)


async def ask(commands: Commands, command: Command, quota: DesktopQuota | None = None, interval: int = 0) -> str:
    try:
        await commands.request(NewCommand(command, interval, quota))
    except (LimitReached, TooEarly) as error:
        return error.code
    return "taken"


async def test_of_fifty_at_once_exactly_the_limit_passes(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        answers = await asyncio.gather(
            *(ask(commands, boot(), DesktopQuota(3, frozenset({"one that runs"}))) for _ in range(50))
        )
        assert sorted(set(answers)) == ["limit_reached", "taken"]
        assert answers.count("taken") == 2
        assert len(await commands.of_user(USER)) == 2


async def test_one_of_fifty_concurrent_starts_is_let_in(tmp_path: Path) -> None:
    """Of fifty at once from two processes worth of connections."""
    async with databases.commands(tmp_path) as one, databases.commands(tmp_path) as other:
        asked = [ask((one, other)[number % 2], boot(), DesktopQuota(5)) for number in range(50)]
        assert (await asyncio.gather(*asked)).count("taken") == 5


async def test_users_do_not_count_against_each_other(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        users = [new_id() for _ in range(20)]
        answers = await asyncio.gather(*(ask(commands, boot(user), QUOTA, 500) for user in users for _ in range(2)))
        assert answers.count("taken") == 20


async def test_too_early_says_how_long_to_wait_and_writes_nothing(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        await commands.request(NewCommand(boot(at=1000), 500))
        with pytest.raises(TooEarly, match=r"wait 0\.4 seconds") as caught:
            await commands.request(NewCommand(boot(at=1100), 500))
        assert caught.value.retry_after == pytest.approx(0.4)
        assert len(await commands.of_user(USER)) == 1
        await commands.request(NewCommand(boot(at=1500), 500))
        assert await ask(commands, boot(at=100), interval=500) == "taken"  # the clock was set back


async def test_a_refused_request_does_not_move_the_gate(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        await commands.request(NewCommand(boot(at=1000), 500))
        assert await ask(commands, boot(at=1400), interval=500) == "too_early"
        assert await ask(commands, boot(at=1500), interval=500) == "taken"


async def test_no_desktop_at_all_and_what_is_over_does_not_count(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        with pytest.raises(LimitReached, match="may not start desktops"):
            await commands.request(NewCommand(boot(), quota=DesktopQuota(0)))
        first = await commands.request(NewCommand(boot(), quota=QUOTA))
        with pytest.raises(LimitReached, match="You may have 1 desktop at once and have 1"):
            await commands.request(NewCommand(boot(), quota=QUOTA))
        await commands.advance(first.id, CommandEvent.FAIL, now=2, fault=Fault("X", "no"))
        await commands.request(NewCommand(boot(), quota=QUOTA))


@pytest.mark.parametrize("state", CommandState)
@pytest.mark.parametrize("event", CommandEvent)
async def test_a_command_moves_only_along_its_table(tmp_path: Path, state: CommandState, event: CommandEvent) -> None:
    way = {
        CommandState.QUEUED: [],
        CommandState.SENT: [CommandEvent.SEND],
        CommandState.ACCEPTED: [CommandEvent.ACCEPT],
        CommandState.SUCCEEDED: [CommandEvent.SUCCEED],
        CommandState.FAILED: [CommandEvent.FAIL],
        CommandState.TIMED_OUT: [CommandEvent.TIME_OUT],
        CommandState.CANCELLED: [CommandEvent.CANCEL],
    }
    async with databases.commands(tmp_path) as commands:
        command = await commands.request(NewCommand(boot()))
        for step in way[state]:
            assert await commands.advance(command.id, step, now=5)
        moved = await commands.advance(command.id, event, now=6)
        found = await commands.get(command.id)
        assert found is not None
        assert moved == COMMAND_LIFE.allows(state, event)
        assert found.state is (COMMAND_LIFE.next(state, event) if moved else state)
        assert (found.finished is not None) == (found.state in FINAL_STATES)


async def test_the_first_late_outcome_is_kept_and_only_after_giving_up(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        given_up = [boot(), boot()]
        done = boot()
        for command in (*given_up, done):
            await commands.request(NewCommand(command))
        await commands.advance(given_up[0].id, CommandEvent.TIME_OUT, now=2, abandon=True)
        await commands.advance(
            given_up[1].id, CommandEvent.FAIL, now=2, fault=Fault("CONNECTION_ERROR", "away"), abandon=True
        )
        # Whoever gives up and is not told that it was written does so again.
        assert not await commands.advance(given_up[1].id, CommandEvent.FAIL, now=3, abandon=True)
        await commands.advance(done.id, CommandEvent.FAIL, now=2, fault=Fault("VM_BOOT_FAILURE", "no"))
        for command in (*given_up, done):
            assert not await commands.advance(command.id, CommandEvent.SUCCEED, now=3)
            assert not await commands.advance(command.id, CommandEvent.CANCEL, now=4)
        found = [await commands.get(command.id) for command in (*given_up, done)]
        assert [command.late for command in found if command] == [CommandState.SUCCEEDED, CommandState.SUCCEEDED, None]
        assert {command.id for command in await commands.to_abandon()} == {command.id for command in given_up}
        await commands.abandoned(given_up[0].id)
        assert [command.id for command in await commands.to_abandon()] == [given_up[1].id]


async def test_late_outcome_asks_for_no_second_abandon(tmp_path: Path) -> None:
    """The cluster answers, and its outcome comes at the same time."""
    told: list[asyncio.Task[None]] = []
    late = False

    async def meanwhile(statement: Executable) -> None:
        if late and not told and isinstance(statement, Select):
            # It has to wait for this transaction, which has begun.
            told.append(asyncio.create_task(commands.abandoned(command.id)))
            await asyncio.wait(told, timeout=0.3)

    with Faults(after_statement=meanwhile).injected("commands"):
        async with databases.commands(tmp_path) as commands:
            command = await commands.request(NewCommand(boot()))
            await commands.advance(command.id, CommandEvent.TIME_OUT, now=2, abandon=True)
            late = True
            await commands.advance(command.id, CommandEvent.SUCCEED, now=3)
            await told[0]
            assert not await commands.to_abandon()
            found = await commands.get(command.id)
            assert found
            assert found.late is CommandState.SUCCEEDED


async def test_one_of_many_outcomes_at_once_wins(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        command = await commands.request(NewCommand(boot()))
        events = [CommandEvent.SUCCEED, CommandEvent.FAIL, CommandEvent.TIME_OUT, CommandEvent.CANCEL] * 5
        moved = await asyncio.gather(*(commands.advance(command.id, event, now=2) for event in events))
        assert moved.count(True) == 1


async def test_a_reader_of_changes_misses_none_while_many_write(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as one, databases.commands(tmp_path) as other:
        written = [boot(new_id()) for _ in range(60)]
        seen: dict[str, CommandState] = {}
        versions: list[int] = []
        last = 0
        finished = False

        async def read() -> None:
            nonlocal last
            while True:
                over = finished
                for change in await other.changes(last):
                    assert change.version >= last
                    last = change.version
                    versions.append(change.version)
                    seen[change.command.id] = change.command.state
                if over:
                    return
                await asyncio.sleep(0)

        async def write(number: int) -> None:
            commands, command = (one, other)[number % 2], written[number]
            await commands.request(NewCommand(command))
            await commands.advance(command.id, CommandEvent.ACCEPT, now=2)
            await commands.advance(command.id, CommandEvent.SUCCEED, now=3)

        reader = asyncio.create_task(read())
        await asyncio.gather(*(write(number) for number in range(60)))
        finished = True
        await reader
        assert seen == {command.id: CommandState.SUCCEEDED for command in written}
        assert versions == sorted(versions), "what shares a transaction shares a version"
        assert last == await one.version()


async def test_dismissing_puts_away_what_is_over(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        over = await commands.request(NewCommand(boot()))
        await commands.advance(over.id, CommandEvent.FAIL, now=2, fault=Fault("X", "no"))
        stop = Command(new_id(), USER, DestroyDesktop(str(over.desktop)), CommandState.QUEUED, 3, 9)
        await commands.request(NewCommand(stop))
        await commands.dismiss(str(over.desktop))
        found = (await commands.of_desktops([str(over.desktop)]))[str(over.desktop)]
        assert [command.dismissed for command in found] == [True, False]


async def test_pages_of_a_users_commands(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as commands:
        ids = [(await commands.request(NewCommand(boot()))).id for _ in range(5)]
        first = await commands.of_user(USER, limit=2)
        rest = await commands.of_user(USER, limit=9, before=first[-1].id)
        assert [command.id for command in (*first, *rest)] == ids[::-1]


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.rigs import databases
from tests.rigs.faulty_database import Faults
from tests.unit.store.test_commands import boot

async def main():
    async with databases.commands(Path(sys.argv[1])) as commands:
        while True:
            print((await commands.request(NewCommand(boot()))).id, flush=True)

asyncio.run(main())
"""


async def test_every_row_that_was_acknowledged_outlives_sigkill(tmp_path: Path) -> None:
    databases.url(tmp_path, "commands")
    acknowledged: list[str] = []

    def write_and_kill() -> None:
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged.append(line.decode().strip())
                if len(acknowledged) == 100:
                    process.send_signal(signal.SIGKILL)
                    break
            acknowledged.extend(process.stdout.read().decode().split())

    await asyncio.to_thread(write_and_kill)
    async with databases.commands(tmp_path) as commands:
        kept = {command.id for command in await commands.unfinished()}
        assert set(acknowledged) <= kept
        assert len(kept) <= len(acknowledged) + 1
