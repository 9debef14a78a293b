"""Delivery: one command on its way to the cluster."""

from dataclasses import dataclass, field
from enum import StrEnum

from pupitre.domain.command import Command
from pupitre.domain.state_machine import Machine
from pupitre.runtime.backoff import Backoff
from pupitre.timings import RESEND


class DeliveryState(StrEnum):
    """JOURNALLED: the cluster has it, which is not in its row yet. DONE: its row says so, or its outcome."""

    SENDING = "sending"
    JOURNALLED = "journalled"
    DONE = "done"


class DeliveryEvent(StrEnum):
    """ANSWER: the cluster has journalled it. WRITE: its row is written."""

    ANSWER = "answer"
    WRITE = "write"


_S, _E = DeliveryState, DeliveryEvent
# An outcome may come before the answer: then its row is written first.
DELIVERY_LIFE: Machine[DeliveryState, DeliveryEvent] = Machine(
    name="delivery",
    initial=_S.SENDING,
    table={
        _S.SENDING: {_E.ANSWER: _S.JOURNALLED, _E.WRITE: _S.DONE},
        _S.JOURNALLED: {_E.WRITE: _S.DONE},
        _S.DONE: {_E.WRITE: _S.DONE},
    },
)


@dataclass(slots=True)
class Delivery:
    """``answered`` is when the cluster answered (loop time)."""

    command: Command
    state: DeliveryState = DELIVERY_LIFE.initial
    answered: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(RESEND))

    def advance(self, event: DeliveryEvent) -> None:
        """Raises `ForbiddenTransition`."""
        self.state = DELIVERY_LIFE.next(self.state, event)

    @property
    def is_journalled(self) -> bool:
        return self.state is DeliveryState.JOURNALLED
