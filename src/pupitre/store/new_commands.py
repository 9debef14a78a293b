"""New commands, many in one transaction: interval, quota, row, and line in the audit log.

The counter's row puts all writers of this database in one order, and a group is decided
one after the other: of any number of requests at once, from any number of portals, only
as many pass as interval and quota allow.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, insert, or_, select

from pupitre.domain.command import PENDING_STATES, Command, CommandKind, CommandState
from pupitre.domain.command_limits import DesktopQuota, Start, check_interval, check_quota, desktops_counted
from pupitre.errors import LimitReached, PupitreError, TooEarly
from pupitre.store.audit import APPEND, AuditEntry, audit_values
from pupitre.store.command_rows import to_row
from pupitre.store.schema import commands, gates
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.upsert import upsert_rows


@dataclass(frozen=True, slots=True)
class NewCommand:
    """A command that is to be written. ``quota`` None: it starts nothing, or its user has no limit.

    ``actor_name`` and ``origin`` are for the audit log: the user's name, and the address that asked.
    """

    command: Command
    interval_ms: int = 0
    quota: DesktopQuota | None = None
    actor_name: str = ""
    origin: str = ""


async def write_new_commands(
    connection: Connection, new: Sequence[NewCommand], version: int
) -> list[Command | PupitreError]:
    """Write those that may pass; `TooEarly` or `LimitReached` for each other, of which nothing is written."""
    last = await _last_commands(connection, {one.command.user for one in new})
    starts = await _starts(connection, new)
    results: list[Command | PupitreError] = []
    passed: list[NewCommand] = []
    for one in new:
        command, user = one.command, one.command.user
        try:
            check_interval(last.get(user), one.interval_ms, command.created)
            if one.quota:
                check_quota(one.quota, desktops_counted(one.quota, starts[user]))
        except (TooEarly, LimitReached) as refusal:
            results.append(refusal)
            continue
        last[user] = command.created
        if command.kind is CommandKind.BOOT_DESKTOP and command.desktop:
            starts[user].append(Start(command.desktop, version, is_under_way=True))
        passed.append(one)
        results.append(command)
    if passed:
        users = {one.command.user for one in passed}
        await upsert_rows(connection, gates, [{"user_id": user, "last": last[user]} for user in sorted(users)])
        rows = [{**to_row(one.command), "version": version, "abandon": False} for one in passed]
        await connection.execute(_WRITE, rows)
        await connection.execute(APPEND, [audit_values(_audit_entry(one)) for one in passed])
    return results


_LAST = select(gates).where(gates.c.user_id.in_(bindparam("users", expanding=True)))
_STARTS = select(commands.c.user_id, commands.c.desktop, commands.c.version, commands.c.state).where(
    commands.c.user_id.in_(bindparam("users", expanding=True)),
    commands.c.kind == CommandKind.BOOT_DESKTOP,
    or_(
        commands.c.state.in_(sorted(PENDING_STATES)),
        and_(commands.c.state == CommandState.SUCCEEDED, commands.c.version > bindparam("as_of")),
    ),
)
_WRITE = insert(commands)


async def _last_commands(connection: Connection, users: set[str]) -> dict[str, int]:
    rows = await connection.execute(_LAST, {"users": list(users)})
    return {row.user_id: row.last for row in rows}


async def _starts(connection: Connection, new: Sequence[NewCommand]) -> dict[str, list[Start]]:
    """Starts that may count against a quota, by user."""
    quotas = {one.command.user: one.quota for one in new if one.quota}
    starts: dict[str, list[Start]] = defaultdict(list)
    if quotas:
        as_of = min(quota.as_of for quota in quotas.values())
        for row in await connection.execute(_STARTS, {"users": list(quotas), "as_of": as_of}):
            starts[row.user_id].append(Start(row.desktop, row.version, row.state in PENDING_STATES))
    return starts


def _audit_entry(new: NewCommand) -> AuditEntry:
    command = new.command
    return AuditEntry(
        at=command.created,
        actor=command.user,
        actor_name=new.actor_name,
        action=command.kind,
        subject=command.subject,
        origin=new.origin,
        command=command.id,
    )
