"""A command as its row, and back."""

from typing import Any

import msgspec

from pupitre.domain.command import Command, CommandState, Fault, Order
from pupitre.store.rows import AnyRow

_orders: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Order)


def encode_order(order: Order) -> str:
    return msgspec.json.encode(order).decode()


def decode_order(payload: str) -> Order:
    order: Order = _orders.decode(payload)
    return order


def to_row(command: Command) -> dict[str, object]:
    """The columns of a new command."""
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


def from_row(row: AnyRow) -> Command:
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
