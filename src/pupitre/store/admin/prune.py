"""Taking away what was kept long enough: old lines of the audit log, and commands that ended long ago.

Only the owner of the databases may: who writes the audit log can neither change nor remove a
line of it (`grants`). In small steps, each a transaction of its own, so that nobody waits for it.
What is still needed stays, however old: commands without an outcome, or of which the cluster
has yet to be told that nobody waits, and who asked for them.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy import BigInteger, BindParameter, ColumnElement, Table, and_, bindparam, delete, exists, false, select
from sqlalchemy.sql import Select

from pupitre.domain.command import FINAL_STATES, PENDING_STATES
from pupitre.store.schema import audit, commands
from pupitre.store.sql.engine import Database
from pupitre.timings import PRUNE_PAUSE

STEP = 500
"""Rows of one transaction."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """Numbers of rows that were taken away."""

    audit: int
    commands: int


def _old_rows(table: Table, *conditions: ColumnElement[bool]) -> Select[tuple[str]]:
    return select(table.c.id).where(*conditions).limit(STEP)


_BEFORE: BindParameter[int] = bindparam("before", type_=BigInteger())
_IS_NEEDED = exists().where(and_(commands.c.id == audit.c.command, commands.c.state.in_(sorted(PENDING_STATES))))
_OLD_LINES = _old_rows(audit, audit.c.at < _BEFORE, ~_IS_NEEDED).order_by(audit.c.at)
_OLD_COMMANDS = _old_rows(
    commands,
    commands.c.state.in_(sorted(FINAL_STATES)),
    commands.c.created < _BEFORE,
    commands.c.finished < _BEFORE,
    commands.c.deadline < _BEFORE,
    commands.c.abandon == false(),
)


async def prune(database: Database, *, audit_before: int, commands_before: int) -> Pruned:
    """Take away from the database ``commands`` what is older (Unix ms). Raises `Unavailable`; it may be repeated."""
    return Pruned(
        await _take_away(database, audit, _OLD_LINES, audit_before),
        await _take_away(database, commands, _OLD_COMMANDS, commands_before),
    )


async def _take_away(database: Database, table: Table, old: Select[tuple[str]], before: int) -> int:
    remove = delete(table).where(table.c.id.in_(bindparam("ids", expanding=True)))
    taken = 0
    while True:
        async with database.write() as connection:
            ids = (await connection.execute(old, {"before": before})).scalars()
            if ids:
                await connection.execute(remove, {"ids": ids})
        taken += len(ids)
        if len(ids) < STEP:
            return taken
        await asyncio.sleep(PRUNE_PAUSE)
