"""Journaled commands and placed desktops as rows of the database ``cluster``, and back."""

from pupitre.domain.command import CommandState, Fault, desktop_of
from pupitre.domain.desktop import DesktopState
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop
from pupitre.store.command_rows import decode_order, encode_order
from pupitre.store.rows import AnyRow, desktop_from_row, desktop_to_row


def command_from_row(row: AnyRow) -> JournaledCommand:
    return JournaledCommand(
        id=row.id,
        user=row.user_id,
        order=decode_order(row.payload),
        deadline=row.deadline,
        outcome=CommandState(row.outcome) if row.outcome else None,
        fault=Fault(row.fault_code, row.fault_reason) if row.fault_code else None,
    )


def placed_from_row(row: AnyRow) -> PlacedDesktop:
    return PlacedDesktop(desktop_from_row(row), DesktopState(row.wanted), row.memory_mib, row.vcpus)


def journal_values(command: JournaledCommand, accepted: int) -> dict[str, object]:
    return {
        "id": command.id,
        "user_id": command.user,
        "kind": command.order.kind,
        "payload": encode_order(command.order),
        "desktop": desktop_of(command.order),
        "accepted": accepted,
        "deadline": command.deadline,
        "outcome": command.outcome,
        "fault_code": command.fault.code if command.fault else None,
        "fault_reason": command.fault.reason if command.fault else None,
        "reported": False,
    }


def outcome_values(command: JournaledCommand) -> dict[str, object]:
    return {
        "entry": command.id,
        "ended": command.outcome,
        "code": command.fault.code if command.fault else None,
        "why": command.fault.reason if command.fault else None,
    }


def desktop_values(placed: PlacedDesktop) -> dict[str, object]:
    return {
        **desktop_to_row(placed.seen),
        "wanted": placed.wanted,
        "memory_mib": placed.memory_mib,
        "vcpus": placed.vcpus,
    }
