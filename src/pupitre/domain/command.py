"""A command: what a person asked for, from the row in the database to its one outcome."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import msgspec

from pupitre.domain.machine import Machine


class CommandKind(StrEnum):
    BOOT_DESKTOP = "boot_desktop"
    DESTROY_DESKTOP = "destroy_desktop"
    REGISTER_HOST = "register_host"


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


class BootDesktop(msgspec.Struct, frozen=True, tag_field="kind", tag="boot_desktop"):
    """VM_BOOT_REQUEST. The portal chooses the desktop's id, so that a repeat is the same desktop."""

    kind: ClassVar[CommandKind] = CommandKind.BOOT_DESKTOP
    desktop: str
    image: str


class DestroyDesktop(msgspec.Struct, frozen=True, tag_field="kind", tag="destroy_desktop"):
    """DESTROY_DOMAIN."""

    kind: ClassVar[CommandKind] = CommandKind.DESTROY_DESKTOP
    desktop: str


class RegisterHost(msgspec.Struct, frozen=True, tag_field="kind", tag="register_host"):
    """REGISTER_VM_SERVER. ``address`` and ``port`` are where the gateway reaches its consoles."""

    kind: ClassVar[CommandKind] = CommandKind.REGISTER_HOST
    name: str
    address: str
    port: int
    edition: bool = False


Order = BootDesktop | DestroyDesktop | RegisterHost


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a command did not succeed: a stable word and one sentence."""

    code: str
    reason: str


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
        return None if isinstance(self.order, RegisterHost) else self.order.desktop
