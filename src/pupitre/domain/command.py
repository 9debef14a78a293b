"""A command: what a person asked for, from the row in the database to its one outcome."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import msgspec

from pupitre.domain.bounds import Name, Text
from pupitre.domain.state_machine import Machine


class CommandKind(StrEnum):
    BOOT_DESKTOP = "boot_desktop"
    DESTROY_DESKTOP = "destroy_desktop"
    REGISTER_HOST = "register_host"
    RETIRE_HOST = "retire_host"
    BOOT_UP_HOST = "boot_up_host"
    CONFIGURE_HOST = "configure_host"
    HALT = "halt"


class CommandState(StrEnum):
    QUEUED = "queued"
    SENT = "sent"
    ACCEPTED = "accepted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


class CommandEvent(StrEnum):
    SEND = "send"
    ACCEPT = "accept"
    SUCCEED = "succeed"
    FAIL = "fail"
    TIME_OUT = "time_out"
    CANCEL = "cancel"


_S, _E = CommandState, CommandEvent
# SENT means: tried, and not yet answered. A command that is answered at once goes
# from QUEUED to ACCEPTED in one write, and an outcome may overtake that answer.
_ENDINGS = {_E.SUCCEED: _S.SUCCEEDED, _E.FAIL: _S.FAILED, _E.TIME_OUT: _S.TIMED_OUT, _E.CANCEL: _S.CANCELLED}

COMMAND_LIFE: Machine[CommandState, CommandEvent] = Machine(
    name="command",
    initial=_S.QUEUED,
    table={
        _S.QUEUED: {_E.SEND: _S.SENT, _E.ACCEPT: _S.ACCEPTED, **_ENDINGS},
        _S.SENT: {_E.SEND: _S.SENT, _E.ACCEPT: _S.ACCEPTED, **_ENDINGS},
        _S.ACCEPTED: {_E.ACCEPT: _S.ACCEPTED, **_ENDINGS},
        _S.SUCCEEDED: {},
        _S.FAILED: {},
        _S.TIMED_OUT: {},
        _S.CANCELLED: {},
    },
)
FINAL_STATES = frozenset(state for state in CommandState if COMMAND_LIFE.is_final(state))
PENDING_STATES = frozenset(CommandState) - FINAL_STATES


class BootDesktop(msgspec.Struct, frozen=True, tag_field="kind", tag="boot_desktop"):
    """VM_BOOT_REQUEST. The portal chooses the desktop's id, so that a repeat is the same desktop.

    ``edition``: on an edition host, to change the image; all others go to the other hosts.
    """

    kind: ClassVar[CommandKind] = CommandKind.BOOT_DESKTOP
    desktop: str
    image: str
    edition: bool = False


class DestroyDesktop(msgspec.Struct, frozen=True, tag_field="kind", tag="destroy_desktop"):
    """DESTROY_DOMAIN."""

    kind: ClassVar[CommandKind] = CommandKind.DESTROY_DESKTOP
    desktop: str


class RegisterHost(msgspec.Struct, frozen=True, tag_field="kind", tag="register_host"):
    """REGISTER_VM_SERVER. ``address`` and ``port`` are where the gateway reaches its consoles.

    ``mac`` is the address of the network card that wakes the machine, as ``52:54:00:12:34:56``.
    """

    kind: ClassVar[CommandKind] = CommandKind.REGISTER_HOST
    name: str
    address: str
    port: int
    edition: bool = False
    mac: str | None = None


class RetireHost(msgspec.Struct, frozen=True, tag_field="kind", tag="retire_host"):
    """UNREGISTER_OR_SHUTDOWN_VM_SERVER.

    With ``unregister`` the host leaves the cluster, without it its machine is shut down and may be booted
    up again. Orderly: its users are warned, then their desktops are shut down; ``at_once``: desktops end now.
    ``host`` is a name, label or address, here and below.
    """

    kind: ClassVar[CommandKind] = CommandKind.RETIRE_HOST
    host: str
    unregister: bool
    at_once: bool = False


class BootUpHost(msgspec.Struct, frozen=True, tag_field="kind", tag="boot_up_host"):
    """BOOTUP_VM_SERVER: wake the machine, then wait for its agent."""

    kind: ClassVar[CommandKind] = CommandKind.BOOT_UP_HOST
    host: str


class ConfigureHost(msgspec.Struct, frozen=True, tag_field="kind", tag="configure_host"):
    """VM_SERVER_CONFIGURATION_CHANGE. What is None stays as it is; an empty ``mac`` takes it away."""

    kind: ClassVar[CommandKind] = CommandKind.CONFIGURE_HOST
    host: str
    label: str | None = None
    address: str | None = None
    port: int | None = None
    edition: bool | None = None
    mac: str | None = None


class Halt(msgspec.Struct, frozen=True, tag_field="kind", tag="halt"):
    """HALT: stop endpoint and cluster, and the hosts too if asked. Pending commands end as cancelled."""

    kind: ClassVar[CommandKind] = CommandKind.HALT
    hosts: bool = False


Order = BootDesktop | DestroyDesktop | RegisterHost | RetireHost | BootUpHost | ConfigureHost | Halt


def desktop_of(order: Order) -> str | None:
    """The desktop that the order is about."""
    return order.desktop if isinstance(order, BootDesktop | DestroyDesktop) else None


def outcome_word(kind: CommandKind, state: CommandState, fault: str | None) -> str:
    """The specification's word for how a command ended (``fault``: its code); empty while it has not."""
    if state not in FINAL_STATES:
        return ""
    if state is CommandState.SUCCEEDED:
        return "VM_CONNECTION_DATA" if kind is CommandKind.BOOT_DESKTOP else "COMMAND_EXECUTED"
    return fault or state.upper()


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a command did not succeed: a stable word and one sentence."""

    code: Name
    reason: Text


@dataclass(frozen=True, slots=True)
class Command:
    """One row of ``commands``. Times are Unix milliseconds (UTC).

    ``late`` is the state an outcome claimed after the command had already
    timed out or failed with CONNECTION_ERROR; it is shown, and what it made is undone.
    ``dismissed``: the user has seen the outcome and does not want it shown any more.
    """

    id: str
    user: str
    order: Order
    state: CommandState
    created: int
    deadline: int
    finished: int | None = None
    fault: Fault | None = None
    late: CommandState | None = None
    dismissed: bool = False

    @property
    def kind(self) -> CommandKind:
        return self.order.kind

    @property
    def desktop(self) -> str | None:
        return desktop_of(self.order)

    @property
    def outcome(self) -> str:
        """Outcome in the specification's word; empty while there is none."""
        return outcome_word(self.kind, self.state, self.fault.code if self.fault else None)

    @property
    def subject(self) -> str:
        """Subject of the command: a desktop's id, a host, or nothing by name."""
        match self.order:
            case BootDesktop(desktop=desktop) | DestroyDesktop(desktop=desktop):
                return desktop
            case RegisterHost(name=host):
                return host
            case RetireHost(host=host) | BootUpHost(host=host) | ConfigureHost(host=host):
                return host
            case Halt():
                return ""
