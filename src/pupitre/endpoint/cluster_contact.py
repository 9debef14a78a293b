"""Contact with the cluster: whether it is reached, judged by what is heard from it and never by a connection.

The one owner of that fact: it stands in the website's table of links, and in a metric.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum

import structlog
from prometheus_client import CollectorRegistry, Gauge

from pupitre.domain.state_machine import Machine
from pupitre.domain.status import ClusterLink
from pupitre.errors import Unavailable
from pupitre.runtime.backoff import Backoff
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import wait_or_timeout
from pupitre.store.status import Status
from pupitre.timings import RESEND

log = structlog.get_logger(__name__)


class ContactState(StrEnum):
    UNKNOWN = "unknown"
    REACHED = "reached"
    LOST = "lost"


class ContactEvent(StrEnum):
    ANSWER = "answer"
    SILENCE = "silence"


_S, _E = ContactState, ContactEvent
CONTACT_LIFE: Machine[ContactState, ContactEvent] = Machine(
    name="contact",
    initial=_S.UNKNOWN,
    table={state: {_E.ANSWER: _S.REACHED, _E.SILENCE: _S.LOST} for state in ContactState},
)


class ClusterContact:
    """``silence_limit`` is how many seconds the cluster may say nothing."""

    def __init__(self, cluster: str, status: Status, *, silence_limit: float, registry: CollectorRegistry) -> None:
        self._cluster = cluster
        self._status = status
        self._silence_limit = silence_limit
        self._state = CONTACT_LIFE.initial
        self._written = ContactState.UNKNOWN
        self._reason = ""
        self._heard = float("-inf")
        self._turn = asyncio.Lock()
        self._due = asyncio.Event()
        self._on_return: list[Callable[[], None]] = []
        self._gauge = Gauge("pupitre_cluster_reached", "1 while the cluster answers", registry=registry)

    def call_on_return(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called whenever the cluster answers again."""
        self._on_return.append(callback)

    async def heard(self) -> None:
        """The cluster has said something."""
        self._heard = asyncio.get_running_loop().time()
        if await self._advance(ContactEvent.ANSWER):
            for callback in self._on_return:
                callback()

    async def missed(self, reason: str) -> None:
        """The cluster has not answered."""
        await self._advance(ContactEvent.SILENCE, reason)

    def look_again(self) -> None:
        """Greet the cluster now, if it is not reached."""
        self._due.set()

    async def watch(self, greet: Callable[[], Awaitable[bool]]) -> None:
        """Call ``greet`` again and again when the cluster was silent too long; it says whether there was an answer."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(RESEND)
        while True:
            if self._written is not self._state:
                await self._write()
            self._due.clear()
            left = self._heard + self._silence_limit - loop.time()
            if self._state is ContactState.REACHED and left > 0:
                backoff.reset()
            elif await greet():
                continue
            else:
                left = backoff.next()
            if self._written is not self._state:
                left = min(left, RESEND.longest)
            await wait_or_timeout(self._due, left)

    async def _advance(self, event: ContactEvent, reason: str = "") -> bool:
        """Whether that is another state than before."""
        state = CONTACT_LIFE.next(self._state, event)
        if state is self._state:
            return False
        self._state, self._reason = state, reason
        reached = state is ContactState.REACHED
        self._gauge.set(reached)
        if reached:
            log.info("cluster_reached", cluster=self._cluster)
        else:
            log.warning("cluster_lost", cluster=self._cluster, reason=reason)
        await self._write()
        return True

    async def _write(self) -> None:
        """Write how it is now; a database that does not answer is tried again by `watch`."""
        async with self._turn:
            state, self._written = self._state, ContactState.UNKNOWN
            reached = state is ContactState.REACHED
            try:
                await self._status.set_link(
                    ClusterLink(self._cluster, reached, now_ms(), None if reached else self._reason)
                )
            except Unavailable as error:
                log.warning("status_database_away", reason=str(error))
                self._due.set()
            else:
                self._written = state
