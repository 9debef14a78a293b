"""New commands, many in one transaction: the interval, the limit, the row, and its line in the audit log.

The counter's row puts all writers of this database in one order, and a group is decided
one after the other: of any number of requests at once, from any number of portals, only
as many pass as interval and limit allow.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select

from pupitre.domain.command import UNENDED_STATES, Command, CommandKind
from pupitre.errors import LimitReached, PupitreError, TooEarly
from pupitre.store.audit import APPEND, AuditEntry, audit_values
from pupitre.store.command_rows import to_row
from pupitre.store.schema import commands, gates
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.upsert import upsert_rows


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many desktops the user may have, and how to read which of them the status database counts."""

    limit: int
    counted: Callable[[], Awaitable[frozenset[str]]]


@dataclass(frozen=True, slots=True)
class Request:
    """``actor_name`` and ``origin`` are for the audit log: the user's name, and the address that asked."""

    command: Command
    interval_ms: int
    allowance: Allowance | None = None
    actor_name: str = ""
    origin: str = ""


async def write_requests(
    connection: Connection, requests: Sequence[Request], version: int
) -> list[Command | PupitreError]:
    """Write those that may pass; `TooEarly` or `LimitReached` for each other, of which nothing is written."""
    last = await _last_asked(connection, {request.command.user for request in requests})
    have = await _have(connection, requests)
    results: list[Command | PupitreError] = []
    passed: list[Request] = []
    for request in requests:
        command, user = request.command, request.command.user
        refusal = _too_early(request, last.get(user)) or _too_many(request, have.get(user, set()))
        if refusal:
            results.append(refusal)
            continue
        last[user] = command.created
        if command.kind is CommandKind.BOOT_DESKTOP and command.desktop:
            have.setdefault(user, set()).add(command.desktop)
        passed.append(request)
        results.append(command)
    if passed:
        users = {request.command.user for request in passed}
        await upsert_rows(connection, gates, [{"user_id": user, "last": last[user]} for user in sorted(users)])
        rows = [{**to_row(request.command), "version": version, "abandon": False} for request in passed]
        await connection.execute(_WRITE, rows)
        await connection.execute(APPEND, [audit_values(_asked(request)) for request in passed])
    return results


_LAST = select(gates).where(gates.c.user_id.in_(bindparam("users", expanding=True)))
_UNDER_WAY = select(commands.c.user_id, commands.c.desktop).where(
    commands.c.user_id.in_(bindparam("users", expanding=True)),
    commands.c.kind == CommandKind.BOOT_DESKTOP,
    commands.c.state.in_(sorted(UNENDED_STATES)),
)
_WRITE = insert(commands)


async def _last_asked(connection: Connection, users: set[str]) -> dict[str, int]:
    rows = await connection.execute(_LAST, {"users": list(users)})
    return {row.user_id: row.last for row in rows}


async def _have(connection: Connection, requests: Sequence[Request]) -> dict[str, set[str]]:
    """Desktops that count against each limited user's limit."""
    allowances = {request.command.user: request.allowance for request in requests if request.allowance}
    if not allowances:
        return {}
    have: dict[str, set[str]] = {user: set() for user in allowances}
    for user, desktop in await connection.execute(_UNDER_WAY, {"users": list(allowances)}):
        have[user].add(desktop)
    # In this order: a boot that ends in between is in the status database before it has its outcome here.
    counted = await asyncio.gather(*(allowance.counted() for allowance in allowances.values()))
    for user, desktops in zip(allowances, counted, strict=True):
        have[user] |= desktops
    return have


def _too_early(request: Request, last: int | None) -> TooEarly | None:
    if last is None:
        return None
    wait = last + request.interval_ms - request.command.created
    if 0 < wait <= request.interval_ms:  # a longer wait means that the clock was set back
        return TooEarly(f"That was too quick: wait {wait / 1000:.1f} seconds and try again.", wait / 1000)
    return None


def _too_many(request: Request, have: set[str]) -> LimitReached | None:
    allowance = request.allowance
    if allowance is None or len(have) < allowance.limit:
        return None
    plural = "desktop" if allowance.limit == 1 else "desktops"
    return LimitReached(
        f"You may have {allowance.limit} {plural} at once and have {len(have)}. Stop one and start again."
        if allowance.limit
        else "Your account may not start desktops. Ask your administrator."
    )


def _asked(request: Request) -> AuditEntry:
    command = request.command
    return AuditEntry(
        at=command.created,
        actor=command.user,
        actor_name=request.actor_name,
        action=command.kind,
        subject=command.subject,
        origin=request.origin,
        command=command.id,
    )
