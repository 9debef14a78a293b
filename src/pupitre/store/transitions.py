"""Steps of commands along `COMMAND_LIFE`, many in one transaction; an outcome has its line in the audit log.

The counter's row is held while they are decided, so what is read is what is written over:
a command has one outcome, and what comes after it is at most remembered as late.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import and_, bindparam, select, update

from pupitre.domain.command import COMMAND_LIFE, Command, CommandEvent, CommandState, Fault
from pupitre.errors import ConnectionFault
from pupitre.store.audit import APPEND, AuditEntry, audit_values
from pupitre.store.command_rows import from_row
from pupitre.store.schema import audit, commands
from pupitre.store.sql.dialect import Connection


@dataclass(frozen=True, slots=True)
class Move:
    """``event`` happens to a command. ``abandon`` asks the endpoint to tell the cluster that nobody waits any more."""

    command: str
    event: CommandEvent
    now: int
    fault: Fault | None = None
    abandon: bool = False


_OUTCOMES = frozenset({CommandState.SUCCEEDED, CommandState.FAILED, CommandState.CANCELLED})
"""What only the cluster says: a second time-out is none."""


@dataclass(frozen=True, slots=True)
class _Held:
    command: Command
    abandon: bool
    asked_by: str


async def write_moves(connection: Connection, moves: Sequence[Move], version: int) -> list[bool]:
    """Whether each command moved: False for one that is in no state that takes the event."""
    before = await _held(connection, {move.command for move in moves})
    now = dict(before)
    moved = []
    ends: list[AuditEntry] = []
    for move in moves:
        held = now.get(move.command)
        moved.append(held is not None and COMMAND_LIFE.allows(held.command.state, move.event))
        after = _after(held, move) if held else None
        if after is None or held is None:
            continue
        now[move.command] = after
        if after.command.outcome != held.command.outcome or after.command.late is not held.command.late:
            ends.append(_ended(after, move.now))
    changed = [held for id, held in now.items() if held != before[id]]
    if changed:
        await connection.execute(_UPDATE, [_values(held, version) for held in changed])
    if ends:
        await connection.execute(APPEND, [audit_values(entry) for entry in ends])
    return moved


async def _held(connection: Connection, ids: set[str]) -> dict[str, _Held]:
    rows = await connection.execute(_HELD, {"ids": list(ids)})
    return {row.id: _Held(from_row(row), row.abandon, row.actor_name or "") for row in rows}


_ASKED = and_(audit.c.command == commands.c.id, audit.c.outcome == "")
_HELD = (
    select(commands, audit.c.actor_name)
    .outerjoin(audit, _ASKED)
    .where(commands.c.id.in_(bindparam("ids", expanding=True)))
)


def _after(held: _Held, move: Move) -> _Held | None:
    """The command after ``move``; None when it changes nothing."""
    command = held.command
    if COMMAND_LIFE.allows(command.state, move.event):
        state = COMMAND_LIFE.next(command.state, move.event)
        if COMMAND_LIFE.is_final(state):
            command = replace(command, finished=move.now, fault=move.fault)
        return replace(held, command=replace(command, state=state), abandon=held.abandon or move.abandon)
    late = next(
        COMMAND_LIFE.next(state, move.event) for state in CommandState if COMMAND_LIFE.allows(state, move.event)
    )
    gave_up = command.state is CommandState.TIMED_OUT or (
        command.fault is not None and command.fault.code == ConnectionFault.code
    )
    if late in _OUTCOMES and gave_up and command.late is None and not move.abandon:  # who gives up again is not late
        return replace(held, command=replace(command, late=late))
    return None


_UPDATE = (
    update(commands)
    .where(commands.c.id == bindparam("command"))
    .values(
        {
            name: bindparam(f"new_{name}")
            for name in ("state", "finished", "fault_code", "fault_reason", "late", "abandon", "version")
        }
    )
)


def _values(held: _Held, version: int) -> dict[str, object]:
    command = held.command
    return {
        "command": command.id,
        "new_state": command.state,
        "new_finished": command.finished,
        "new_fault_code": command.fault.code if command.fault else None,
        "new_fault_reason": command.fault.reason if command.fault else None,
        "new_late": command.late,
        "new_abandon": held.abandon,
        "new_version": version,
    }


def _ended(held: _Held, now: int) -> AuditEntry:
    command = held.command
    return AuditEntry(
        at=now,
        actor=command.user,
        actor_name=held.asked_by,
        action=command.kind,
        subject=command.subject,
        outcome=f"late {command.late}" if command.late else command.outcome,
        detail=command.fault.reason if command.fault else "",
        command=command.id,
    )
