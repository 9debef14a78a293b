"""The database ``commands``: what was asked for, until long after it has its outcome.

The row is written before the browser has its answer, and its state moves only
along `COMMAND_LIFE`: every change is one UPDATE that names the states it may leave.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Row, and_, false, func, insert, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from pupitre.domain.command import (
    COMMAND_LIFE,
    FINAL_STATES,
    Command,
    CommandEvent,
    CommandKind,
    CommandState,
    Fault,
    Order,
)
from pupitre.errors import LimitReached, TooEarly
from pupitre.store.engine import Database, next_version
from pupitre.store.schema import commands, commands_counter, gates

_orders: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Order)


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many desktops the user may have, and how to read which of them the status database counts."""

    limit: int
    counted: Callable[[], Awaitable[frozenset[str]]]


@dataclass(frozen=True, slots=True)
class CommandChange:
    version: int
    command: Command


ASKED, ANSWERED = "asked", "answered"
"""What wakes the endpoint, and what wakes the portals (a request too: the user's other tabs show it)."""


class Commands:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def request(
        self,
        command: Command,
        *,
        interval_ms: int,
        allowance: Allowance | None = None,
    ) -> Command:
        """Write a new command. Raises `TooEarly` and `LimitReached`; then nothing has changed.

        Interval, limit and row are one transaction, which the user's gate row puts in
        order: of any number of requests at once, only as many pass as the limit allows.
        """
        async with self.database.write(ASKED, ANSWERED) as connection:
            version = await next_version(connection, commands_counter)
            await self._pass_gate(connection, command, interval_ms)
            if allowance is not None:
                await self._check_allowance(connection, command, allowance)
            await connection.execute(insert(commands).values(version=version, abandon=False, **_to_row(command)))
        return command

    async def _pass_gate(self, connection: AsyncConnection, command: Command, interval_ms: int) -> None:
        last = (await connection.execute(select(gates.c.last).where(gates.c.user_id == command.user))).scalar()
        if last is None:
            await connection.execute(insert(gates).values(user_id=command.user, last=command.created))
            return
        wait = last + interval_ms - command.created
        if 0 < wait <= interval_ms:  # a longer wait means that the clock was set back
            raise TooEarly(f"That was too quick: wait {wait / 1000:.1f} seconds and try again.", wait / 1000)
        await connection.execute(update(gates).where(gates.c.user_id == command.user).values(last=command.created))

    async def _check_allowance(self, connection: AsyncConnection, command: Command, allowance: Allowance) -> None:
        under_way = await connection.execute(
            select(commands.c.desktop).where(
                commands.c.user_id == command.user,
                commands.c.kind == CommandKind.BOOT_DESKTOP,
                commands.c.state.not_in(FINAL_STATES),
            )
        )
        # In this order: a boot that ends in between is in the status database before it has its outcome here.
        have = {str(desktop) for (desktop,) in under_way} | await allowance.counted()
        if len(have) >= allowance.limit:
            plural = "desktop" if allowance.limit == 1 else "desktops"
            raise LimitReached(
                f"You may have {allowance.limit} {plural} at once and have {len(have)}. Stop one and start again."
                if allowance.limit
                else "Your account may not start desktops. Ask your administrator."
            )

    async def get(self, command_id: str) -> Command | None:
        async with self.database.read() as connection:
            row = (await connection.execute(select(commands).where(commands.c.id == command_id))).one_or_none()
        return _from_row(row) if row else None

    async def of_user(self, user_id: str, *, limit: int = 100, before: str | None = None) -> list[Command]:
        """The user's commands, newest first. ``before`` is the id of the last one already seen."""
        query = select(commands).where(commands.c.user_id == user_id)
        if before:
            query = query.where(commands.c.id < before)
        async with self.database.read() as connection:
            rows = await connection.execute(query.order_by(commands.c.id.desc()).limit(limit))
        return [_from_row(row) for row in rows]

    async def recent_boots(self, user_id: str, *, since: int) -> list[Command]:
        """The user's boot commands without an outcome, or with one since then (Unix ms), oldest first."""
        query = select(commands).where(
            commands.c.user_id == user_id,
            commands.c.kind == CommandKind.BOOT_DESKTOP,
            or_(commands.c.finished.is_(None), commands.c.finished >= since),
        )
        async with self.database.read() as connection:
            return [_from_row(row) for row in await connection.execute(query.order_by(commands.c.id))]

    async def of_desktops(self, desktop_ids: Collection[str]) -> dict[str, list[Command]]:
        """Every command of these desktops, oldest first."""
        query = select(commands).where(commands.c.desktop.in_(desktop_ids)).order_by(commands.c.id)
        found: dict[str, list[Command]] = {}
        async with self.database.read() as connection:
            for row in await connection.execute(query):
                found.setdefault(str(row.desktop), []).append(_from_row(row))
        return found

    async def dismiss(self, desktop_id: str) -> None:
        """The user has seen what came of this desktop: do not show it any more."""
        async with self.database.write(ANSWERED) as connection:
            version = await next_version(connection, commands_counter)
            await connection.execute(
                update(commands)
                .where(commands.c.desktop == desktop_id, commands.c.state.in_(FINAL_STATES))
                .values(dismissed=True, version=version)
            )

    async def version(self) -> int:
        async with self.database.read() as connection:
            return int((await connection.execute(select(commands_counter.c.value))).scalar_one())

    async def changes(self, after: int) -> list[CommandChange]:
        """Commands changed since version ``after``, in the order of their changes."""
        query = select(commands).where(commands.c.version > after).order_by(commands.c.version)
        async with self.database.read() as connection:
            return [CommandChange(row.version, _from_row(row)) for row in await connection.execute(query)]

    # The endpoint's side

    async def unfinished(self) -> list[Command]:
        """Every command without an outcome, oldest first."""
        query = select(commands).where(commands.c.state.not_in(FINAL_STATES)).order_by(commands.c.id)
        async with self.database.read() as connection:
            return [_from_row(row) for row in await connection.execute(query)]

    async def to_send(self, *, limit: int = 500) -> list[Command]:
        """Commands that the cluster has not yet journalled, oldest first."""
        waiting = (CommandState.QUEUED, CommandState.SENT)
        query = select(commands).where(commands.c.state.in_(waiting)).order_by(commands.c.id).limit(limit)
        async with self.database.read() as connection:
            return [_from_row(row) for row in await connection.execute(query)]

    async def next_deadline(self) -> int | None:
        query = select(func.min(commands.c.deadline)).where(commands.c.state.not_in(FINAL_STATES))
        async with self.database.read() as connection:
            deadline: int | None = (await connection.execute(query)).scalar()
        return deadline

    async def advance(
        self, command_id: str, event: CommandEvent, *, now: int, fault: Fault | None = None, abandon: bool = False
    ) -> bool:
        """Move a command along its life; False when it is in no state that takes ``event``.

        An outcome for a command that has already ended is kept as ``late`` (the first one).
        ``abandon`` asks the endpoint to tell the cluster that nobody waits any more.
        """
        sources = [state for state in CommandState if COMMAND_LIFE.allows(state, event)]
        target = COMMAND_LIFE.next(sources[0], event)
        values: dict[str, object] = {"state": target}
        if COMMAND_LIFE.is_final(target):
            values |= {
                "finished": now,
                "fault_code": fault.code if fault else None,
                "fault_reason": fault.reason if fault else None,
            }
        if abandon:
            values["abandon"] = True
        async with self.database.write(ANSWERED) as connection:
            version = await next_version(connection, commands_counter)
            here = commands.c.id == command_id
            moved = await connection.execute(
                update(commands).where(here, commands.c.state.in_(sources)).values(version=version, **values)
            )
            if not moved.rowcount and COMMAND_LIFE.is_final(target):
                gave_up = or_(
                    commands.c.state == CommandState.TIMED_OUT,
                    and_(commands.c.state == CommandState.FAILED, commands.c.fault_code == "CONNECTION_ERROR"),
                )
                await connection.execute(
                    update(commands)
                    .where(here, gave_up, commands.c.late.is_(None))
                    .values(version=version, late=target)
                )
        return bool(moved.rowcount)

    async def to_abandon(self) -> list[Command]:
        """Commands that the cluster has yet to be told nobody waits for."""
        query = select(commands).where(commands.c.abandon == true()).order_by(commands.c.id)
        async with self.database.read() as connection:
            return [_from_row(row) for row in await connection.execute(query)]

    async def abandoned(self, command_id: str) -> None:
        """The cluster has confirmed that it knows nobody waits."""
        async with self.database.write() as connection:
            await connection.execute(update(commands).where(commands.c.id == command_id).values(abandon=false()))


def encode_order(order: Order) -> str:
    return msgspec.json.encode(order).decode()


def decode_order(payload: str) -> Order:
    order: Order = _orders.decode(payload)
    return order


def _to_row(command: Command) -> dict[str, object]:
    return {
        "id": command.id,
        "user_id": command.user,
        "kind": command.kind,
        "payload": encode_order(command.order),
        "desktop": command.desktop,
        "state": command.state,
        "created": command.created,
        "deadline": command.deadline,
        "dismissed": command.dismissed,
    }


def _from_row(row: "Row[tuple[object, ...]]") -> Command:
    return Command(
        id=row.id,
        user=row.user_id,
        order=decode_order(row.payload),
        state=CommandState(row.state),
        created=row.created,
        deadline=row.deadline,
        finished=row.finished,
        fault=Fault(row.fault_code, row.fault_reason) if row.fault_code else None,
        late=CommandState(row.late) if row.late else None,
        dismissed=row.dismissed,
    )
