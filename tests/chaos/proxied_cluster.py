"""A cluster of real processes in which each speaks to the broker through a proxy, and anything may be done to it."""

import asyncio
import contextlib
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pupitre.config import Settings
from pupitre.domain.command import BootUpHost, CommandState, RetireHost
from tests.chaos.proxy import Proxy, Way
from tests.chaos.repeater import Repeater, allow
from tests.chaos.schedule import AWAY, Action, Deed
from tests.rigs.local_cluster import IMAGE, prepare
from tests.rigs.process_cluster import ClusterProcess, ProcessCluster, prepare_home, settings_of
from tests.rigs.server_processes import DatabaseServer


class ProxiedCluster(ProcessCluster):
    """See `proxied_cluster`."""

    def __init__(self, settings: Settings, hosts: Sequence[str], environment: dict[str, str]) -> None:
        super().__init__(settings, hosts, environment, IMAGE)
        self.proxies: dict[str, Proxy] = {}
        self.server: DatabaseServer | None = None
        self._clusters = 1
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def prepare_home(self) -> None:
        """Every process, not yet started, with its proxy."""
        await self.open(allow)
        for name in ("cluster", "endpoint", *self.hosts):
            await self.add_behind_proxy(name)

    async def add_behind_proxy(self, name: str) -> ClusterProcess:
        self.proxies[name] = proxy = Proxy(int(self.settings.nats_url.rsplit(":", 1)[1]))
        await proxy.open()
        return self.add(name, nats_url=f"tls://127.0.0.1:{proxy.port}")

    async def close(self) -> None:
        await super().close()
        for proxy in self.proxies.values():
            await proxy.close()

    async def do(self, action: Action) -> None:
        """Carry out one action, to its end, once what was done to the same process before has ended."""
        async with self._turns[action.target]:
            await self._do(action)

    async def _do(self, action: Action) -> None:
        if action.deed is Deed.CRASH:
            await self._crash(action.seconds)
            return
        part = self.processes[action.target]
        match action.deed:
            case Deed.KILL:
                await part.kill()
                await pause(action.seconds)
                await part.start(wait=False)
            case Deed.FREEZE:
                await self.freeze(action.target)
                await pause(action.seconds)
                part.signal(signal.SIGCONT)
            case Deed.USURP:
                await self._usurp(action.seconds)
            case Deed.DELAY:
                await self._hold(action, *Way)
            case Deed.DEAFEN:
                await self._hold(action, Way.FROM_BROKER, cut=True)
            case Deed.CUT:
                self.proxies[action.target].cut()
            case Deed.DRAIN:
                await self._drain(action.target, action.seconds)

    async def _crash(self, seconds: float) -> None:
        assert self.server is not None
        await asyncio.to_thread(self.server.crash)
        await pause(seconds)
        await asyncio.to_thread(self.server.start)

    async def _drain(self, name: str, seconds: float) -> None:
        """Shut down, then booted up by command; whoever would press the machine's button is played here."""
        part, self.lasting = self.processes[name], False
        order = RetireHost(host=name, unregister=False, at_once=seconds < AWAY / 2)
        retired = await self.outcome(await self.ask(order, timeout=60))
        if retired.state is CommandState.SUCCEEDED:
            await part.ended()
        await part.kill()
        await pause(seconds)
        waking = await self.ask(BootUpHost(host=name), timeout=60)
        await part.start(wait=False)
        await self.outcome(waking)

    async def _hold(self, action: Action, *ways: Way, cut: bool = False) -> None:
        proxy = self.proxies[action.target]
        proxy.hold(*ways)
        await pause(action.seconds)
        if cut:
            proxy.cut()
        proxy.release()

    async def _usurp(self, seconds: float) -> None:
        """Two clusters at once, as when a frozen one was taken for dead.

        If the new one has taken over, the old one must find out and end; if it stands by still, it is its turn now.
        """
        old, proxy = self.processes["cluster"], self.proxies["cluster"]
        self._clusters += 1
        name = f"cluster-{self._clusters}"
        new = await self.add_behind_proxy(name)
        await new.start(wait=False)
        await self.freeze("cluster")
        await pause(seconds)
        old.signal(signal.SIGCONT)
        if new.ready.is_set():
            await old.ended()
        else:
            await old.kill()
        self.processes["cluster"], self.proxies["cluster"] = self.processes.pop(name), self.proxies.pop(name)
        await proxy.close()


async def pause(seconds: float) -> None:
    """An action of the schedule lasts this long; nothing else is waited for by the clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


@asynccontextmanager
async def proxied_cluster(
    home: Path, hosts: Sequence[str] = ("host-1", "host-2"), *, start: bool = True, **changes: object
) -> AsyncIterator[ProxiedCluster]:
    """Started and registered; ended with nothing left. ``changes`` are settings."""
    settings, environment = settings_of(home, **changes)
    await asyncio.to_thread(prepare_home, settings, hosts, prepare)
    made = ProxiedCluster(settings, hosts, environment)
    try:
        await made.prepare_home()
        if start:
            await made.start()
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def repeating(proxied_cluster: ProxiedCluster, seed: int, share: float) -> AsyncIterator[Repeater]:
    """While it is open, ``share`` of all messages come more than once."""
    repeater = Repeater(proxied_cluster.settings, random.Random(f"repeater {seed}"), share)
    await repeater.open()
    try:
        yield repeater
    finally:
        await repeater.close()
