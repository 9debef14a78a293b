"""A desktop: one user's running copy of an image."""

from dataclasses import dataclass
from enum import StrEnum

from pupitre.domain.bounds import Key, Name, Small, Text, Time
from pupitre.domain.state_machine import Machine


class DesktopState(StrEnum):
    REQUESTED = "requested"
    PREPARING = "preparing"
    BOOTING = "booting"
    RUNNING = "running"
    STOPPING = "stopping"
    GONE = "gone"
    FAILED = "failed"
    LOST = "lost"


class DesktopEvent(StrEnum):
    PREPARE = "prepare"
    START = "start"
    RUN = "run"
    STOP = "stop"
    END = "end"
    FAIL = "fail"
    LOSE = "lose"


_S, _E = DesktopState, DesktopEvent
_ANYTIME = {_E.STOP: _S.STOPPING, _E.FAIL: _S.FAILED, _E.LOSE: _S.LOST, _E.END: _S.GONE}

DESKTOP_LIFE: Machine[DesktopState, DesktopEvent] = Machine(
    name="desktop",
    initial=_S.REQUESTED,
    table={
        # A host reports the latest step only, so steps between may be skipped.
        _S.REQUESTED: {_E.PREPARE: _S.PREPARING, _E.START: _S.BOOTING, _E.RUN: _S.RUNNING, **_ANYTIME},
        _S.PREPARING: {_E.PREPARE: _S.PREPARING, _E.START: _S.BOOTING, _E.RUN: _S.RUNNING, **_ANYTIME},
        _S.BOOTING: {_E.START: _S.BOOTING, _E.RUN: _S.RUNNING, **_ANYTIME},
        _S.RUNNING: {_E.RUN: _S.RUNNING, **_ANYTIME},
        _S.STOPPING: {_E.STOP: _S.STOPPING, _E.END: _S.GONE, _E.FAIL: _S.STOPPING, _E.LOSE: _S.STOPPING},
        _S.LOST: {**_ANYTIME, _E.PREPARE: _S.PREPARING, _E.START: _S.BOOTING, _E.RUN: _S.RUNNING},
        _S.FAILED: {_E.STOP: _S.STOPPING, _E.END: _S.GONE, _E.FAIL: _S.FAILED},
        _S.GONE: {},
    },
)

OPEN_STATES = frozenset({_S.RUNNING})
"""States in which a console can be opened."""
COUNTED_STATES = frozenset({_S.REQUESTED, _S.PREPARING, _S.BOOTING, _S.RUNNING, _S.STOPPING, _S.LOST})
"""States that count against the user's limit: something may be running somewhere."""


@dataclass(frozen=True, slots=True)
class Desktop:
    """Row of a desktop in the status database.

    ``since`` is when the present state began, ``created`` when it was asked for,
    both in Unix milliseconds. ``boot`` is the boot generation: it grows with every
    start of the guest, and a console ticket names the one it is for. ``until`` (Unix ms) is when
    a host that is being shut down takes the desktop away.
    """

    id: Key
    owner: Key
    image: Name
    host: Name | None
    state: DesktopState
    since: Time
    created: Time
    reason: Text | None = None
    boot: Small = 0
    until: Time | None = None
