"""The database ``commands``: what was asked for, until long after it has its outcome.

The row is written before the browser has its answer, and its state moves only along
`COMMAND_LIFE`. New commands that come together share a transaction, and so do moves.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Integer, bindparam, false, func, or_, select, true, update

from pupitre.domain.command import (
    FINAL_STATES,
    PENDING_STATES,
    Command,
    CommandEvent,
    CommandKind,
    CommandState,
    Fault,
)
from pupitre.errors import PupitreError
from pupitre.runtime.batch import Batch
from pupitre.store.command_rows import from_row
from pupitre.store.new_commands import NewCommand, write_new_commands
from pupitre.store.schema import commands, commands_counter
from pupitre.store.sql.engine import Database, next_version
from pupitre.store.transitions import CommandTransition, write_transitions


@dataclass(frozen=True, slots=True)
class CommandChange:
    version: int
    command: Command


ASKED, ANSWERED = "asked", "answered"
"""What wakes the endpoint, and what wakes the portals (a request too: the user's other tabs show it)."""

_UNENDED = commands.c.state.in_(sorted(PENDING_STATES))
_ONE = select(commands).where(commands.c.id == bindparam("command"))
_OF_DESKTOPS = (
    select(commands).where(commands.c.desktop.in_(bindparam("desktops", expanding=True))).order_by(commands.c.id)
)
_VERSION = select(commands_counter.c.value)
_CHANGES = select(commands).where(commands.c.version > bindparam("after")).order_by(commands.c.version)
_UNFINISHED = select(commands).where(_UNENDED).order_by(commands.c.id)
_NEXT_DEADLINE = select(func.min(commands.c.deadline)).where(_UNENDED)
_TO_ABANDON = select(commands).where(commands.c.abandon == true()).order_by(commands.c.id)
_PLACE = func.row_number().over(partition_by=(commands.c.user_id, commands.c.kind), order_by=commands.c.id)
_RANKED = select(commands, _PLACE.label("place")).where(_UNENDED).subquery()
_TO_SEND = (
    select(_RANKED)
    .where(_RANKED.c.state.in_((CommandState.QUEUED, CommandState.SENT)))
    .order_by(_RANKED.c.place, _RANKED.c.id)
    .limit(bindparam("most", type_=Integer()))
)


class Commands:
    def __init__(self, database: Database) -> None:
        self.database = database

        self._new: Batch[NewCommand, Command] = Batch(self._write_new)
        self._moves: Batch[CommandTransition, bool] = Batch(self._move)

    async def request(self, new: NewCommand) -> Command:
        """Write a new command, and who asked for it, from where.

        Raises `TooEarly` and `LimitReached`; then nothing has changed.
        """
        return await self._new.do(new)

    async def _write_new(self, group: Sequence[NewCommand]) -> list[Command | PupitreError]:
        async with self.database.write(ASKED, ANSWERED) as connection:
            return await write_new_commands(connection, group, await next_version(connection, commands_counter))

    async def get(self, command_id: str) -> Command | None:
        row = (await self.database.select(_ONE, {"command": command_id})).one_or_none()
        return from_row(row) if row else None

    async def of_user(self, user_id: str, *, limit: int = 100, before: str | None = None) -> list[Command]:
        """The user's commands, newest first. ``before`` is the id of the last one already seen."""
        query = select(commands).where(commands.c.user_id == user_id)
        if before:
            query = query.where(commands.c.id < before)
        async with self.database.read() as connection:
            rows = await connection.execute(query.order_by(commands.c.id.desc()).limit(limit))
        return [from_row(row) for row in rows]

    async def recent_boots(self, user_id: str, *, since: int) -> list[Command]:
        """The user's boot commands without an outcome, or with one since then (Unix ms), oldest first."""
        query = select(commands).where(
            commands.c.user_id == user_id,
            commands.c.kind == CommandKind.BOOT_DESKTOP,
            or_(commands.c.finished.is_(None), commands.c.finished >= since),
        )
        async with self.database.read() as connection:
            return [from_row(row) for row in await connection.execute(query.order_by(commands.c.id))]

    async def of_desktops(self, desktop_ids: Collection[str]) -> dict[str, list[Command]]:
        """Every command of these desktops, oldest first."""
        found: dict[str, list[Command]] = {}
        for row in await self.database.select(_OF_DESKTOPS, {"desktops": list(desktop_ids)}):
            found.setdefault(str(row.desktop), []).append(from_row(row))
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
        return int((await self.database.select(_VERSION)).scalar_one())

    async def changes(self, after: int) -> list[CommandChange]:
        """Commands changed since version ``after``, in the order of their changes."""
        rows = await self.database.select(_CHANGES, {"after": after})
        return [CommandChange(row.version, from_row(row)) for row in rows]

    # The endpoint's side

    async def unfinished(self) -> list[Command]:
        """Every command without an outcome, oldest first."""
        return [from_row(row) for row in await self.database.select(_UNFINISHED)]

    async def to_send(self, *, starts_per_user: int = 8, limit: int = 500) -> tuple[list[Command], bool]:
        """Commands that the cluster has not yet journalled: each user's first, then each user's second, and so on.

        Of one user no more than ``starts_per_user`` starts are under way at once; the others wait for their turn,
        and whether any does is the second result.
        """
        rows = await self.database.select(_TO_SEND, {"most": limit})
        sent = [row for row in rows if row.kind != CommandKind.BOOT_DESKTOP or row.place <= starts_per_user]
        return [from_row(row) for row in sent], len(sent) < len(rows) or len(rows) == limit

    async def next_deadline(self) -> int | None:
        deadline: int | None = (await self.database.select(_NEXT_DEADLINE)).scalar()
        return deadline

    async def advance(
        self, command_id: str, event: CommandEvent, *, now: int, fault: Fault | None = None, abandon: bool = False
    ) -> bool:
        """Move a command along its life; False when it is in no state that takes ``event``.

        An outcome for a command that has already ended is kept as ``late`` (the first one).
        ``abandon`` asks the endpoint to tell the cluster that nobody waits any more.
        """
        return await self._moves.do(CommandTransition(command_id, event, now, fault, abandon))

    async def catch_up(self) -> None:
        """Wait for a write whose answer was lost: it has been made when this returns, or never will be."""
        async with self.database.write() as connection:
            await next_version(connection, commands_counter)  # after whoever still holds it
            await connection.rollback()

    async def _move(self, group: Sequence[CommandTransition]) -> list[bool]:
        async with self.database.write(ANSWERED) as connection:
            return await write_transitions(connection, group, await next_version(connection, commands_counter))

    async def to_abandon(self) -> list[Command]:
        """Commands that the cluster has yet to be told nobody waits for."""
        return [from_row(row) for row in await self.database.select(_TO_ABANDON)]

    async def abandoned(self, command_id: str) -> None:
        """The cluster has confirmed that it knows nobody waits."""
        async with self.database.write() as connection:
            # In its turn: a late outcome that was read before and is written after would ask for it again.
            await next_version(connection, commands_counter)
            await connection.execute(update(commands).where(commands.c.id == command_id).values(abandon=false()))
