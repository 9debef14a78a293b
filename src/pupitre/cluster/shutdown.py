"""HALT: every command that is under way ends as cancelled, the hosts shut down if asked, then the cluster ends.

Until then the cluster works as ever, so that outcomes reach the endpoint and hosts leave in order; it
takes no new commands. A cluster that is killed meanwhile finds the open command and goes on halting.
"""

import asyncio
from functools import partial

import structlog

from pupitre.cluster.decisions import stop
from pupitre.cluster.host_commands import AT_ONCE, HEARD, SHUT_DOWN
from pupitre.cluster.hosts import Hosts
from pupitre.domain.command import BootDesktop, CommandState, Fault, Halt, desktop_of
from pupitre.domain.host import HostState
from pupitre.errors import Halted
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import rung
from pupitre.store.cluster import ClusterStore
from pupitre.store.cluster_rows import Entry
from pupitre.store.transaction import Needs, Transaction

log = structlog.get_logger(__name__)

REPORT_LIMIT = 20.0
"""Seconds that outcomes have to reach the endpoint, which may be away."""
LOOK_AGAIN = 1.0
FAULT = Fault(Halted.code, "The cluster was halted before this was done. Ask again once it runs.")


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
        halts: list[Entry] = []
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
        await self._store.change(Needs(commands=ids), partial(_succeed, commands=ids))
        await self._until_reported()
        log.info("The cluster is halted.")

    async def _cancel(self, entries: list[Entry]) -> None:
        desktops = frozenset(desktop for entry in entries if (desktop := desktop_of(entry.order)))
        needs = Needs(commands=frozenset(entry.id for entry in entries), desktops=desktops)
        await self._store.change(needs, partial(cancel, entries=entries, now=now_ms()))

    async def _shut_hosts_down(self) -> None:
        await self._store.change(Needs(), want_hosts_down)
        while True:
            self.moved.clear()
            leaving = await self._store.change(Needs(), hosts_leaving)
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


def cancel(transaction: Transaction, entries: list[Entry], now: int) -> None:
    """End the commands; what a start has made is not wanted any more."""
    for entry in entries:
        held = transaction.entry(entry.id)
        if held is None or held.outcome is not None:
            continue
        transaction.finish(entry.id, CommandState.CANCELLED, FAULT)
        if isinstance(held.order, BootDesktop) and (placed := transaction.desktop(held.order.desktop)):
            stop(transaction, placed, now=now, reason="the cluster was halted")


def want_hosts_down(transaction: Transaction) -> None:
    """Have every host that is not down shut down, without notice."""
    for held in list(transaction.hosts.values()):
        if held.host.state is not HostState.SHUT_DOWN:
            transaction.put_host(held.host, wanted=SHUT_DOWN, drained_by=AT_ONCE)


def hosts_leaving(transaction: Transaction) -> list[str]:
    """The names of hosts that answer and are to shut down; one that was down and is back again has done so."""
    return [
        held.host.name for held in transaction.hosts.values() if held.host.state in HEARD and held.wanted == SHUT_DOWN
    ]


def _succeed(transaction: Transaction, commands: frozenset[str]) -> None:
    for command in commands:
        transaction.finish(command, CommandState.SUCCEEDED)
