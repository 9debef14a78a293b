"""The audit log: what is in it, how it is found again, and what cannot get in."""

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Executable, text
from sqlalchemy.dialects import mysql, postgresql, sqlite

from pupitre.domain.command import BootDesktop, Command, CommandEvent, CommandState, Fault
from pupitre.errors import TooEarly
from pupitre.store.audit import APPEND, FIRST_PART, MAX_DETAIL, Act, AuditEntry, AuditLog, Wanted, audit_values
from pupitre.store.new_commands import NewCommand
from pupitre.store.sql.engine import Database
from pupitre.store.sql.statement import Result, Values
from tests.rigs import databases

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]

ANA = "0190aaaa-0000-7000-8000-000000000001"


def entry(at: int, **changes: str) -> AuditEntry:
    values = {"actor": ANA, "actor_name": "ana", "action": Act.SIGN_IN, "outcome": "done"} | changes
    return AuditEntry(at=at, **values)


async def test_what_was_written_is_found_by_who_what_when_and_any_word(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "commands") as database:
        log = AuditLog(database)
        first = entry(1000, origin="10.0.0.7")
        second = entry(2000, actor="", actor_name="mallory", outcome="refused", detail="Wrong name or 100% password.")
        third = entry(3000, action=Act.ROLE_CHANGED, subject="ben_jr", detail="from student to teacher")
        await log.add(first, second)
        await log.add(third)

        async def found(**filters: object) -> list[AuditEntry]:
            return await log.search(**filters)  # type: ignore[arg-type]

        assert await found() == [third, second, first], "whole, and the newest first"
        assert await found(actor="ana") == [third, first]
        assert await found(actor=ANA) == [third, first]
        assert await found(action="role_changed") == [third]
        assert await found(outcome="refused") == [second]
        assert await found(since=2000) == [third, second]
        assert await found(until=2000) == [first]
        for text, entries in (
            ("MALLORY", [second]),
            ("to teacher", [third]),
            ("10.0.0.7", [first]),
            ("100%", [second]),
            ("10%", []),  # no wildcard
            ("ben_jr", [third]),
            ("ben.jr", []),
            ("refused", [second]),
        ):
            assert await found(text=text) == entries, text


async def test_pages_have_each_entry_once(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "commands") as database:
        log = AuditLog(database)
        written = [entry(at) for at in range(25)]
        await log.add(*written)
        seen: list[AuditEntry] = []
        while page := await log.search(limit=10, before=seen[-1].id if seen else None):
            seen += page
            await log.add(entry(99))  # what comes meanwhile moves no page
        assert seen == written[::-1]


async def test_what_people_type_is_cut_and_cannot_forge_a_line(tmp_path: Path) -> None:
    long = "x" * 100_000
    nasty = "eve\n2026-01-01 admin signed in\r\x1b[2J\x00\ud800\u202e"
    async with databases.database(tmp_path, "commands") as database:
        log = AuditLog(database)
        await log.add(
            AuditEntry(1, long, long, long, long, long, long, long),
            AuditEntry(2, "", nasty, Act.SIGN_IN, nasty, nasty, nasty, nasty),
        )
        typed, cut = await log.search()
    assert [len(field) for field in (cut.actor_name, cut.subject, cut.origin, cut.detail)] == [64, 255, 64, MAX_DETAIL]
    assert cut.subject.endswith("x…")
    for field in (typed.actor_name, typed.subject, typed.origin, typed.outcome, typed.detail):
        assert field.isprintable()
        assert field.startswith("eve�2026-01-01 admin signed in")


async def test_command_is_audited_when_asked_ended_and_late(
    tmp_path: Path,
) -> None:
    """A command has its wish its outcome and a late one in the log and a refused one nothing."""
    async with databases.commands(tmp_path) as commands:
        log = AuditLog(commands.database)
        order = BootDesktop(desktop="0190aaaa-0000-7000-8000-00000000000d", image="tiny")
        first, refused = (
            Command(f"0190aaaa-0000-7000-8000-0000000000c{n}", ANA, order, CommandState.QUEUED, 1000 + n, 9000)
            for n in (1, 2)
        )
        await commands.request(NewCommand(first, 500, actor_name="ana", origin="10.0.0.7"))
        with pytest.raises(TooEarly):
            await commands.request(NewCommand(refused, 500, actor_name="ana", origin="10.0.0.7"))
        fault = Fault("TIMED_OUT", "No answer within 8 s.")
        assert await commands.advance(first.id, CommandEvent.TIME_OUT, now=9000, fault=fault)
        assert not await commands.advance(first.id, CommandEvent.SUCCEED, now=9500)
        found = await log.search()
    shown = [(entry.at, entry.outcome, entry.origin, entry.detail) for entry in reversed(found)]
    assert shown == [
        (1001, "", "10.0.0.7", ""),
        (9000, "TIMED_OUT", "", "No answer within 8 s."),
        (9500, "late succeeded", "", "No answer within 8 s."),
    ]
    assert {(entry.command, entry.actor, entry.actor_name, entry.action, entry.subject) for entry in found} == {
        (first.id, ANA, "ana", "boot_desktop", order.desktop)
    }


async def test_a_long_log_is_looked_through_in_parts(tmp_path: Path) -> None:
    """Each look ends within its budget and says where; together they find what one search would."""
    async with databases.database(tmp_path, "commands") as database:
        log = AuditLog(database)
        needle = entry(0, detail="the needle")
        hay = [entry(at, detail="hay") for at in range(1, 3 * FIRST_PART)]
        async with database.write() as connection:
            await connection.execute(APPEND, [audit_values(one) for one in (needle, *hay)])
        found, before, looks = [], None, 0
        while True:
            part = await log.look(Wanted(text="needle"), limit=10, before=before)
            found += part.entries
            looks += 1
            if part.reached is None:
                break
            assert before is None or part.reached < before
            before = part.reached
        assert found == [needle]
        full = await log.look(Wanted(text="hay"), limit=10)
        assert full.entries == hay[:-11:-1]
        assert full.reached == hay[-10].id
        assert await log.search(text="needle") == [needle]
        assert await log.search(text="hay", since=5, until=8) == [hay[6], hay[5], hay[4]]
        assert await log.search(since=10**6) == []


async def test_every_look_into_the_log_uses_an_index(tmp_path: Path, each_database: str) -> None:
    """First page, one part of a search, an id, the ends of a time: none reads the whole table."""
    ident = "0190aaaa-0000-7000-8000-00000000000d"
    async with databases.closing(
        Noting(databases.url(tmp_path, "commands"), notify_dir=tmp_path / "notify")
    ) as database:
        assert isinstance(database, Noting)
        log = AuditLog(database)
        async with database.write() as connection:
            await connection.execute(APPEND, [audit_values(entry(at, subject=str(at))) for at in range(FIRST_PART)])
        for wanted in (Wanted(), Wanted(text="nothing"), Wanted(text=ident), Wanted(actor="ana", since=5, until=9)):
            await log.look(wanted, limit=10)
        plans = [await plan(database, statement) for statement in list(database.asked)]
    assert len(plans) >= 8
    for words in plans:
        assert re.search(USES_INDEX[each_database], words), words
        assert not re.search(READS_ALL[each_database], words), words


USES_INDEX = {"sqlite": "USING (COVERING )?INDEX", "postgresql": "Index", "mariadb": "PRIMARY|ix_audit|optimized away"}
READS_ALL = {"sqlite": "SCAN audit(?! USING)", "postgresql": "Seq Scan", "mariadb": r"\bALL\b"}


class Noting(Database):
    """It also keeps what it was asked."""

    def __init__(self, url: str, *, notify_dir: Path) -> None:
        super().__init__(url, notify_dir=notify_dir)
        self.asked: list[Any] = []

    async def select(self, statement: Executable, values: Values | None = None) -> Result:
        self.asked.append(statement)
        return await super().select(statement, values)


async def plan(database: Database, statement: Any) -> str:
    """How the database would answer, in its words."""
    kind = database.kind
    dialects: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mysql}
    compiled = statement.compile(dialect=dialects[kind].dialect(), compile_kwargs={"literal_binds": True})
    said = str(compiled).replace("%%", "%").replace("%", "%%" if kind == "mariadb" else "%").replace(":", r"\:")
    explain = "EXPLAIN QUERY PLAN " if kind == "sqlite" else "EXPLAIN "
    return "\n".join(str(tuple(row)) for row in await database.select(text(explain + said)))
