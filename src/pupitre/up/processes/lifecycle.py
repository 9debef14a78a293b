"""The life of one child of the supervisor: a state table, and when to try again.

Pure: the clock is an argument. A child that ends unasked is started again after a
pause that doubles from half a second to half a minute, and is short again once
the child has lived for a minute. One that has done what it was told rests until it is woken.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from pupitre.domain.state_machine import Machine
from pupitre.timings import CHILD_HEALTHY, CHILD_RESTART

HOPELESS_AFTER = 3
"""Starts in a row that end before the child was ever ready; then `up` says why and gives up."""


class ChildState(StrEnum):
    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    RESTING = "resting"
    STOPPING = "stopping"
    DOWN = "down"


class ChildEvent(StrEnum):
    START = "start"
    READY = "ready"
    EXIT = "exit"
    FINISH = "finish"
    STOP = "stop"


_S, _E = ChildState, ChildEvent

CHILD_LIFE: Machine[ChildState, ChildEvent] = Machine(
    name="child process",
    initial=_S.IDLE,
    table={
        _S.IDLE: {_E.START: _S.STARTING, _E.FINISH: _S.RESTING, _E.STOP: _S.DOWN},
        _S.STARTING: {_E.READY: _S.READY, _E.EXIT: _S.WAITING, _E.FINISH: _S.RESTING, _E.STOP: _S.STOPPING},
        _S.READY: {_E.READY: _S.READY, _E.EXIT: _S.WAITING, _E.FINISH: _S.RESTING, _E.STOP: _S.STOPPING},
        _S.WAITING: {_E.START: _S.STARTING, _E.STOP: _S.DOWN},
        _S.RESTING: {_E.START: _S.STARTING, _E.STOP: _S.DOWN},
        # A last word from a child that is already on its way out changes nothing.
        _S.STOPPING: {_E.READY: _S.STOPPING, _E.STOP: _S.STOPPING, _E.EXIT: _S.DOWN},
        _S.DOWN: {},
    },
)


@dataclass(frozen=True, slots=True)
class ChildLifecycle:
    """State of a child. ``since`` is when the state began, in seconds of any steady clock.

    ``failures`` counts ends in a row that came before `CHILD_HEALTHY`; ``restarts`` counts all.
    """

    state: ChildState = CHILD_LIFE.initial
    since: float = 0.0
    started: float = 0.0
    failures: int = 0
    restarts: int = 0
    was_ready: bool = False

    def after(self, event: ChildEvent, now: float) -> "ChildLifecycle":
        """The life after ``event``. Raises `ForbiddenTransition`."""
        state = CHILD_LIFE.next(self.state, event)
        life = replace(self, state=state, since=self.since if state is self.state else now)
        if event is ChildEvent.START:
            return replace(life, started=now, restarts=self.restarts + (self.state is ChildState.WAITING))
        if event is ChildEvent.READY:
            return replace(life, was_ready=True)
        if event is ChildEvent.EXIT:
            healthy = now - self.started >= CHILD_HEALTHY
            return replace(life, failures=1 if healthy else self.failures + 1)
        if event is ChildEvent.FINISH:
            return replace(life, failures=0)
        return life

    @property
    def pause(self) -> float:
        """Seconds to wait before the next start."""
        return CHILD_RESTART.after(self.failures)

    @property
    def is_hopeless(self) -> bool:
        """It never became ready, and trying again has not helped: a person must look."""
        return not self.was_ready and self.failures >= HOPELESS_AFTER
