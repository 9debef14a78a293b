"""Halt: every command that is under way ends as cancelled, the hosts shut down if asked, then the cluster ends.

Until then the cluster works as ever, so that outcomes reach the endpoint and hosts leave in order; it
takes no new commands. A cluster that is killed meanwhile finds the open command and goes on halting.
"""

import asyncio
from functools import partial

import structlog

from pupitre.cluster.hosts import Hosts
from pupitre.domain.command import Halt, desktop_of
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import wait_or_timeout
from pupitre.scheduler.shutdown import cancel, hosts_leaving, succeed, want_hosts_down
from pupitre.scheduler.state import JournaledCommand, ReadSet
from pupitre.store.cluster import ClusterStore
from pupitre.timings import HALT_RECHECK, HALT_REPORT_LIMIT

log = structlog.get_logger(__name__)


class ClusterShutdown:
    """``run`` returns once the cluster shall end. Set ``moved`` whenever a host moved or outcomes were taken."""

    def __init__(self, store: ClusterStore, hosts: Hosts) -> None:
        self.moved = asyncio.Event()
        self._store = store
        self._hosts = hosts
        self._begun = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        return self._begun.is_set()

    def begin(self) -> None:
        """Take no command from here on."""
        self._begun.set()

    async def run(self) -> None:
        await self._begun.wait()
        log.info("halt_begins")
        halts: list[JournaledCommand] = []
        while True:
            unfinished = await self._store.unfinished()
            halts = [command for command in unfinished if isinstance(command.order, Halt)]
            others = [command for command in unfinished if not isinstance(command.order, Halt)]
            if not others:
                break
            await self._cancel(others)
        await self._wait_until_reported()
        if any(isinstance(command.order, Halt) and command.order.hosts for command in halts):
            await self._shut_hosts_down()
        ids = frozenset(command.id for command in halts)
        await self._store.change(partial(succeed, commands=ids), ReadSet(commands=ids))
        await self._wait_until_reported()
        log.info("halted")

    async def _cancel(self, commands: list[JournaledCommand]) -> None:
        desktops = frozenset(desktop for command in commands if (desktop := desktop_of(command.order)))
        reads = ReadSet(commands=frozenset(command.id for command in commands), desktops=desktops)
        await self._store.change(partial(cancel, commands=commands, now=now_ms()), reads)

    async def _shut_hosts_down(self) -> None:
        await self._store.change(want_hosts_down)
        while True:
            self.moved.clear()
            leaving = await self._store.change(hosts_leaving)
            if not leaving:
                return
            for name in leaving:
                self._hosts.wake(name)
            await wait_or_timeout(self.moved, HALT_RECHECK)

    async def _wait_until_reported(self) -> None:
        try:
            async with timeout(HALT_REPORT_LIMIT):
                while (await self._store.unreported())[1]:
                    self.moved.clear()
                    await wait_or_timeout(self.moved, HALT_RECHECK)
        except TimeoutError:
            log.warning("outcomes_not_taken", remedy="The endpoint gets them when the cluster runs again.")
