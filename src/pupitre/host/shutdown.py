"""Shutdown of a host: nothing of any desktop is left, the cluster knows it, then the process ends.

Either because its process stops and takes the guests along, or because the cluster wants the machine
shut down. Should the process die before its notice, the cluster, which waits for that, asks again.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pupitre.domain.desktop import DesktopState
from pupitre.errors import PupitreError
from pupitre.host.hypervisor.port import Hypervisor
from pupitre.host.journal import Journal
from pupitre.host.reports import Reporter
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import wait_or_timeout
from pupitre.timings import HOST_RETRY, HOST_SHUTDOWN_LIMIT
from pupitre.wire.messages import Done, PowerOff

log = structlog.get_logger(__name__)

SHUT_DOWN, STOPPED = "Its host is shut down.", "Pupitre was stopped."

TakeAway = Callable[[str, int, str], Awaitable[None]]
"""Has a desktop removed: by when at the latest (Unix ms, 0 for at once), and why."""


class PoweredOff(Exception):
    """Ends the agent's loops: nothing is left here, and the machine may be shut down."""


class HostShutdown:
    """Set ``moved`` whenever a record has changed. ``grace`` is in seconds, for guests of a machine that shuts down."""

    def __init__(
        self, hypervisor: Hypervisor, journal: Journal, reporter: Reporter, *, take_away: TakeAway, grace: float
    ) -> None:
        self.moved = asyncio.Event()
        self._hypervisor = hypervisor
        self._journal = journal
        self._reporter = reporter
        self._take_away = take_away
        self._grace = grace
        self._told = asyncio.Event()

    @property
    def is_on(self) -> bool:
        """Whether the machine is about to shut down."""
        return self._told.is_set()

    async def order(self, order: PowerOff) -> Done:
        """Begin; a repeat at once hurries. Raises `Unavailable`, `HypervisorError`."""
        await self._want_all_gone(SHUT_DOWN, 0 if order.at_once else after(self._grace))
        if not self.is_on:
            log.info("host_shutdown_begun", desktops=len(self._journal.records))
            self._told.set()
        return Done()

    async def run(self) -> None:
        """Clear up once told so, and say that this host shuts down. Raises `PoweredOff`."""
        await self._told.wait()
        while True:
            try:
                await self._remove_all(SHUT_DOWN, after(self._grace))
                break
            except PupitreError as error:
                log.warning("desktops_not_removed_yet", reason=str(error))
                await asyncio.sleep(HOST_RETRY)
        try:
            async with timeout(HOST_SHUTDOWN_LIMIT):
                while not await self._reporter.announce_shutdown():
                    self.moved.clear()
                    await wait_or_timeout(self.moved, HOST_RETRY)
        except TimeoutError:
            log.warning("host_shutdown_without_cluster")
        raise PoweredOff

    async def remove_all_guests(self) -> None:
        """The process stops, and its guests with it."""
        try:
            async with timeout(HOST_SHUTDOWN_LIMIT):
                await self._remove_all(STOPPED)
                for _ in range(3):
                    if await self._reporter.send():
                        break
        except TimeoutError:
            log.error("desktops_not_removed", desktops=sorted(self._journal.records))

    async def _want_all_gone(self, reason: str, end_by: int = 0) -> None:
        for desktop in self._journal.records.keys() | (await self._hypervisor.guests()).keys():
            await self._take_away(desktop, end_by, reason)

    async def _remove_all(self, reason: str, end_by: int = 0) -> None:
        await self._want_all_gone(reason, end_by)
        while any(record.state is not DesktopState.GONE for record in self._journal.records.values()):
            self.moved.clear()
            await self.moved.wait()


def after(seconds: float) -> int:
    """Time so many seconds from now, as Unix ms; 0 for at once."""
    return now_ms() + int(seconds * 1000) if seconds else 0
