"""HALT: every command that is under way ends as cancelled, the hosts shut down if asked, then the cluster ends.

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
from pupitre.runtime.workers import rung
from pupitre.scheduler.shutdown import cancel, hosts_leaving, succeed, want_hosts_down
from pupitre.scheduler.state import JournaledCommand, ReadSet
from pupitre.store.cluster import ClusterStore

log = structlog.get_logger(__name__)

REPORT_LIMIT = 20.0
"""Seconds that outcomes have to reach the endpoint, which may be away."""
LOOK_AGAIN = 1.0


class Halting:
    """``run`` returns once the cluster shall end. Set ``moved`` whenever a host moved or outcomes were taken."""

    def __init__(self, store: ClusterStore, hosts: Hosts) -> None:
        self.moved = asyncio.Event()
        self._store = store
        self._hosts = hosts
        self._told = asyncio.Event()

    @property
    def is_on(self) -> bool:
        return self._told.is_set()

    def begin(self) -> None:
        """From here on no command is taken."""
        self._told.set()

    async def run(self) -> None:
        await self._told.wait()
        log.info("The cluster is being halted.")
        halts: list[JournaledCommand] = []
        while True:
            unfinished = await self._store.unfinished()
            halts = [entry for entry in unfinished if isinstance(entry.order, Halt)]
            others = [entry for entry in unfinished if not isinstance(entry.order, Halt)]
            if not others:
                break
            await self._cancel(others)
        await self._until_reported()
        if any(isinstance(entry.order, Halt) and entry.order.hosts for entry in halts):
            await self._shut_hosts_down()
        ids = frozenset(entry.id for entry in halts)
        await self._store.change(partial(succeed, commands=ids), ReadSet(commands=ids))
        await self._until_reported()
        log.info("The cluster is halted.")

    async def _cancel(self, entries: list[JournaledCommand]) -> None:
        desktops = frozenset(desktop for entry in entries if (desktop := desktop_of(entry.order)))
        needs = ReadSet(commands=frozenset(entry.id for entry in entries), desktops=desktops)
        await self._store.change(partial(cancel, commands=entries, now=now_ms()), needs)

    async def _shut_hosts_down(self) -> None:
        await self._store.change(want_hosts_down)
        while True:
            self.moved.clear()
            leaving = await self._store.change(hosts_leaving)
            if not leaving:
                return
            for name in leaving:
                self._hosts.wake(name)
            await rung(self.moved, LOOK_AGAIN)

    async def _until_reported(self) -> None:
        try:
            async with timeout(REPORT_LIMIT):
                while (await self._store.unreported())[1]:
                    self.moved.clear()
                    await rung(self.moved, LOOK_AGAIN)
        except TimeoutError:
            log.warning("The endpoint does not take the last outcomes; it gets them when the cluster runs again.")
