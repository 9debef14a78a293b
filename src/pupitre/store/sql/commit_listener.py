"""Listening to a database over a connection that may break: it comes back by itself and then rings.

Entering never fails: while the database is away it is tried again. Who listens is
woken once more than needed rather than once less.
"""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

import structlog

from pupitre.runtime.backoff import Backoff
from pupitre.timings import DATABASE_LISTENER_END, LISTENER_RECONNECT

log = structlog.get_logger(__name__)


class RemoteListener(ABC):
    """An async context manager; ``heard`` waits for the next ring, folding many into one."""

    errors: ClassVar[tuple[type[Exception], ...]]
    """What a driver raises when the database does not answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tried = asyncio.Event()
        self._notified = asyncio.Event()
        self._away = False
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _follow(self) -> None:
        """Connect, call `_begun`, then `_notify` at each change until the connection is lost (returns or raises)."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"listen to {self._name}")
        self._task.add_done_callback(self._ended)
        await self._tried.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Said again: before Python 3.12 a driver that waits by `asyncio.wait_for` can lose a cancellation.
        while self._task and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=DATABASE_LISTENER_END)

    async def wait(self) -> None:
        await self._notified.wait()
        if self._task and self._task.done():
            self._task.result()  # what nobody foresaw is not waited out in silence
        self._notified.clear()

    def _ended(self, _task: object) -> None:
        self._tried.set()
        self._notify()

    def _notify(self) -> None:
        self._notified.set()

    def _begun(self) -> None:
        """Note that no change is missed from now on; what came before may have been."""
        if self._away:
            log.info("database_listening_again", database=self._name)
            self._notify()
        self._away = False
        self._tried.set()

    async def _run(self) -> None:
        backoff = Backoff(LISTENER_RECONNECT)
        while True:
            try:
                await self._follow()
            except self.errors as error:
                if not self._away:
                    log.warning("database_listening_lost", database=self._name, error=str(error))
            if not self._away:
                backoff.reset()
            self._away = True
            self._tried.set()
            await asyncio.sleep(backoff.next())
