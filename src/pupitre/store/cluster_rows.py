"""What the cluster keeps: journalled commands, placed desktops, hosts and notes; as values, and as rows."""

from dataclasses import dataclass

from pupitre.domain.command import CommandState, Fault, Order, desktop_of
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host
from pupitre.store.command_rows import decode_order, encode_order
from pupitre.store.rows import AnyRow, desktop_from_row, desktop_to_row


@dataclass(frozen=True, slots=True)
class Entry:
    """A journalled command; ``outcome`` None while it is under way."""

    id: str
    user: str
    order: Order
    deadline: int
    outcome: CommandState | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A desktop as the cluster keeps it. ``wanted`` is RUNNING or GONE, whatever ``seen`` says."""

    seen: Desktop
    wanted: DesktopState
    memory_mib: int
    vcpus: int

    @property
    def counted_on(self) -> str | None:
        """The host whose memory and CPUs it uses."""
        return None if self.seen.state is DesktopState.GONE else self.seen.host


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A host as the cluster keeps it.

    ``wanted`` is READY, SHUT_DOWN or UNREGISTERED (see `pupitre.store.schema`), ``drained_by`` when its
    desktops are taken away (Unix ms); ``used_*`` is the sum over its desktops that are not gone.
    """

    host: Host
    wanted: str = "ready"
    drained_by: int | None = None
    used_memory_mib: int = 0
    used_vcpus: int = 0


@dataclass(frozen=True, slots=True)
class Doubt:
    """A host has heard of changes that are not in this database; ``since`` is Unix ms.

    ``confirmed``: an administrator wants the cluster to go on from here. ``proven``: the host has shown an order
    that the cluster's own key signed then.
    """

    since: int
    confirmed: bool
    proven: bool = False


@dataclass(frozen=True, slots=True)
class UnknownGuest:
    """A guest that a host has and no row knows. ``proven``: the cluster's key has signed the rest for that host."""

    host: str
    desktop: str
    boot: int
    state: str
    owner: str
    image: str
    proven: bool


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the cluster settled by itself, for the audit log."""

    id: str
    at: int
    action: str
    subject: str
    detail: str


def entry_from_row(row: AnyRow) -> Entry:
    return Entry(
        id=row.id,
        user=row.user_id,
        order=decode_order(row.payload),
        deadline=row.deadline,
        outcome=CommandState(row.outcome) if row.outcome else None,
        fault=Fault(row.fault_code, row.fault_reason) if row.fault_code else None,
    )


def placed_from_row(row: AnyRow) -> Placed:
    return Placed(desktop_from_row(row), DesktopState(row.wanted), row.memory_mib, row.vcpus)


def entry_values(entry: Entry, accepted: int) -> dict[str, object]:
    return {
        "id": entry.id,
        "user_id": entry.user,
        "kind": entry.order.kind,
        "payload": encode_order(entry.order),
        "desktop": desktop_of(entry.order),
        "accepted": accepted,
        "deadline": entry.deadline,
        "outcome": entry.outcome,
        "fault_code": entry.fault.code if entry.fault else None,
        "fault_reason": entry.fault.reason if entry.fault else None,
        "reported": False,
    }


def outcome_values(entry: Entry) -> dict[str, object]:
    return {
        "entry": entry.id,
        "ended": entry.outcome,
        "code": entry.fault.code if entry.fault else None,
        "why": entry.fault.reason if entry.fault else None,
    }


def desktop_values(placed: Placed) -> dict[str, object]:
    return {
        **desktop_to_row(placed.seen),
        "wanted": placed.wanted,
        "memory_mib": placed.memory_mib,
        "vcpus": placed.vcpus,
    }
