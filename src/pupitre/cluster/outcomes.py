"""Outcomes of commands on their way to the endpoint: sent until they are taken, the oldest first."""

import asyncio

import structlog

from pupitre.domain.command import Halt
from pupitre.domain.status import Rows
from pupitre.errors import MessageError, NoAnswer, Unavailable
from pupitre.scheduler.state import JournaledCommand, Outcomes
from pupitre.store.cluster import ClusterStore
from pupitre.timings import GATHER
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Done, Outcome
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)


class OutcomeReporter:
    """Set ``due`` to have it look again; ``halting`` says that a halt ends this cluster now."""

    def __init__(self, store: ClusterStore, broker: BrokerConnection, subjects: Subjects) -> None:
        self.due = asyncio.Event()
        self.halting = False
        self._store = store
        self._broker = broker
        self._subject = subjects.outcomes
        # Outcomes that were just written, and whether some may be missing among them: then all are read.
        self._written: list[tuple[int, JournaledCommand, Rows]] = []
        self._reads = True

    def add(self, version: int, outcomes: Outcomes | None) -> None:
        """Take the outcomes that were just committed; None: they have to be read."""
        if outcomes is None:
            self._reads = True
        else:
            self._written += [(version, *one) for one in outcomes]
        if self._written or self._reads:
            self.due.set()

    def read_all(self) -> None:
        """Look at the database again for all there is to tell."""
        self._reads = True
        self.due.set()

    async def report(self) -> bool:
        """Report outcomes that wait; True when all of them are taken."""
        try:
            ended = await self._waiting()
            answers = await asyncio.gather(*(self._send(*one) for one in ended))
            taken = [command.id for (_, command, _), answer in zip(ended, answers, strict=True) if answer]
            if taken:
                await self._store.reported(taken)
        except Unavailable:
            self._reads = True
            raise
        self._reads |= len(taken) < len(ended)
        if taken and (self._reads or self._written):
            self.due.set()
        if len(taken) > 1:
            await asyncio.sleep(GATHER)
        return len(taken) == len(ended)

    async def _waiting(self) -> list[tuple[int, JournaledCommand, Rows]]:
        """Those just written; or, where some may be missing among these, the first page of all that wait."""
        written, self._written = self._written, []
        if not self._reads:
            return written
        self._reads = False
        version, unreported = await self._store.unreported()
        self._reads |= bool(unreported)  # there may be another page
        return [(version, *one) for one in unreported]

    async def _send(self, version: int, command: JournaledCommand, rows: Rows) -> bool:
        assert command.outcome is not None
        outcome = Outcome(
            id=command.id,
            state=command.outcome,
            fault=command.fault,
            rows=rows,
            epoch=self._store.epoch,
            sequence=version,
            halts=self.halting and isinstance(command.order, Halt),
        )
        try:
            await self._broker.request(self._subject, outcome, Done)
        except NoAnswer:
            return False
        except MessageError as error:
            # Sending it again would not help; the endpoint ends the command by its time-out.
            log.error("outcome_refused", command=command.id, reason=str(error))
        return True
