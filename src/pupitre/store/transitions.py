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
class CommandTransition:
    """``event`` happens to a command. ``abandon`` asks the endpoint to tell the cluster that nobody waits any more."""

    command: str
    event: CommandEvent
    now: int
    fault: Fault | None = None
    abandon: bool = False


_OUTCOMES = frozenset({CommandState.SUCCEEDED, CommandState.FAILED, CommandState.CANCELLED})
"""What only the cluster says: a second time-out is none."""


@dataclass(frozen=True, slots=True)
class _StoredCommand:
    command: Command
    abandon: bool
    asked_by: str


async def write_transitions(
    connection: Connection, transitions: Sequence[CommandTransition], version: int
) -> list[bool]:
    """Whether each command moved: False for one that is in no state that takes the event."""
    before = await _read_commands(connection, {transition.command for transition in transitions})
    now = dict(before)
    has_changed = []
    ends: list[AuditEntry] = []
    for transition in transitions:
        stored = now.get(transition.command)
        has_changed.append(stored is not None and COMMAND_LIFE.allows(stored.command.state, transition.event))
        after = _after(stored, transition) if stored else None
        if after is None or stored is None:
            continue
        now[transition.command] = after
        if after.command.outcome != stored.command.outcome or after.command.late is not stored.command.late:
            ends.append(_ended(after, transition.now))
    changed = [stored for id, stored in now.items() if stored != before[id]]
    if changed:
        await connection.execute(_UPDATE, [_values(stored, version) for stored in changed])
    if ends:
        await connection.execute(APPEND, [audit_values(entry) for entry in ends])
    return has_changed


async def _read_commands(connection: Connection, ids: set[str]) -> dict[str, _StoredCommand]:
    rows = await connection.execute(_STORED, {"ids": list(ids)})
    return {row.id: _StoredCommand(from_row(row), row.abandon, row.actor_name or "") for row in rows}


_ASKED = and_(audit.c.command == commands.c.id, audit.c.outcome == "")
_STORED = (
    select(commands, audit.c.actor_name)
    .outerjoin(audit, _ASKED)
    .where(commands.c.id.in_(bindparam("ids", expanding=True)))
)


def _after(stored: _StoredCommand, transition: CommandTransition) -> _StoredCommand | None:
    """The command after ``transition``; None when it changes nothing."""
    command = stored.command
    if COMMAND_LIFE.allows(command.state, transition.event):
        state = COMMAND_LIFE.next(command.state, transition.event)
        if COMMAND_LIFE.is_final(state):
            command = replace(command, finished=transition.now, fault=transition.fault)
        return replace(stored, command=replace(command, state=state), abandon=stored.abandon or transition.abandon)
    late = next(
        COMMAND_LIFE.next(state, transition.event)
        for state in CommandState
        if COMMAND_LIFE.allows(state, transition.event)
    )
    gave_up = command.state is CommandState.TIMED_OUT or (
        command.fault is not None and command.fault.code == ConnectionFault.code
    )
    if (
        late in _OUTCOMES and gave_up and command.late is None and not transition.abandon
    ):  # who gives up again is not late
        return replace(stored, command=replace(command, late=late))
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


def _values(stored: _StoredCommand, version: int) -> dict[str, object]:
    command = stored.command
    return {
        "command": command.id,
        "new_state": command.state,
        "new_finished": command.finished,
        "new_fault_code": command.fault.code if command.fault else None,
        "new_fault_reason": command.fault.reason if command.fault else None,
        "new_late": command.late,
        "new_abandon": stored.abandon,
        "new_version": version,
    }


def _ended(stored: _StoredCommand, now: int) -> AuditEntry:
    command = stored.command
    return AuditEntry(
        at=now,
        actor=command.user,
        actor_name=stored.asked_by,
        action=command.kind,
        subject=command.subject,
        outcome=f"late {command.late}" if command.late else command.outcome,
        detail=command.fault.reason if command.fault else "",
        command=command.id,
    )
