"""Retention: what is old goes in small steps, what is still needed stays, and only the owner may."""

from pathlib import Path

import pytest
from sqlalchemy import select

from pupitre.config import DatabaseRole
from pupitre.domain.command import BootDesktop, Command, CommandEvent, CommandState
from pupitre.errors import Unavailable
from pupitre.store.admin.prune import STEP, Pruned, prune
from pupitre.store.audit import APPEND, Act, AuditEntry, AuditLog, audit_values
from pupitre.store.new_commands import NewCommand
from pupitre.store.schema import audit, commands
from tests.rigs import databases
from tests.rigs.database_servers import Provisioned

pytestmark = pytest.mark.anyio

ANA = "0190aaaa-0000-7000-8000-000000000001"
OLD, NEW = 1000, 9_000_000


def command(number: int, at: int, deadline: int) -> Command:
    order = BootDesktop(desktop=f"0190aaaa-0000-7000-8000-0000000000d{number}", image="tiny")
    return Command(f"0190aaaa-0000-7000-8000-0000000000c{number}", ANA, order, CommandState.QUEUED, at, deadline)


def entry(at: int) -> AuditEntry:
    return AuditEntry(at=at, actor=ANA, actor_name="ana", action=Act.SIGN_IN, outcome="done")


@pytest.mark.usefixtures("each_database")
async def test_old_rows_go_and_needed_ones_stay(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as store:
        ended, waiting, to_abandon, long, recent = (
            command(1, OLD, 2000), command(2, OLD, 2000), command(3, OLD, 2000),
            command(4, OLD, NEW), command(5, NEW, NEW),
        )  # fmt: skip
        for one in (ended, waiting, to_abandon, long, recent):
            await store.request(NewCommand(one, 0, actor_name="ana"))
        for one in (ended, long):
            await store.advance(one.id, CommandEvent.SUCCEED, now=1500)
        await store.advance(to_abandon.id, CommandEvent.TIME_OUT, now=1500, abandon=True)
        await store.advance(recent.id, CommandEvent.SUCCEED, now=NEW)
        assert await prune(store.database, audit_before=5000, commands_before=5000) == Pruned(audit=7 - 1, commands=1)
        async with store.database.read() as connection:
            kept = set((await connection.execute(select(commands.c.id))).scalars())
            lines = await connection.execute(select(audit.c.command, audit.c.at).order_by(audit.c.at))
        assert kept == {one.id for one in (waiting, to_abandon, long, recent)}
        # Who asked for what has no outcome yet stays with it, for the line that its outcome will write.
        assert [tuple(line) for line in lines] == [(waiting.id, OLD), (recent.id, NEW), (recent.id, NEW)]
        await store.advance(waiting.id, CommandEvent.FAIL, now=NEW)
        newest = (await AuditLog(store.database).search(limit=1))[0]
        assert (newest.actor_name, newest.command) == ("ana", waiting.id)


@pytest.mark.usefixtures("each_database")
async def test_many_rows_go_in_steps_and_once(tmp_path: Path) -> None:
    async with databases.commands(tmp_path) as store:
        lines = [audit_values(entry(at)) for at in range(2 * STEP + 7)]
        async with store.database.write() as connection:
            await connection.execute(APPEND, lines)
        assert await prune(store.database, audit_before=2 * STEP + 2, commands_before=0) == Pruned(2 * STEP + 2, 0)
        assert await prune(store.database, audit_before=2 * STEP + 2, commands_before=0) == Pruned(0, 0)
        assert len(await AuditLog(store.database).search(limit=20)) == 5


async def test_only_owner_prunes_the_audit_log(tmp_path: Path, each_server: Provisioned) -> None:
    assert each_server.server.kind in {"postgresql", "mariadb"}
    async with databases.database(tmp_path, "commands", "portal") as portal:
        await AuditLog(portal).add(entry(OLD))
        roles: tuple[DatabaseRole, ...] = ("portal", "endpoint")
        for role in roles:
            async with databases.database(tmp_path, "commands", role) as database:
                with pytest.raises(Unavailable, match="denied"):
                    await prune(database, audit_before=NEW, commands_before=NEW)
        async with databases.database(tmp_path, "commands", "owner") as owner:
            assert await prune(owner, audit_before=NEW, commands_before=NEW) == Pruned(1, 0)
