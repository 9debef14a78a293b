"""A whole Pupitre of real processes without a supervisor: who dies when, and who comes back, is the test's to say."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uuid_utils

from pupitre import pki
from pupitre.bench.evidence import gather
from pupitre.bench.history import Evidence, Violation, violations
from pupitre.clock import now_ms
from pupitre.config import Settings
from pupitre.domain.command import FINAL_STATES, BootDesktop, Command, CommandState, DestroyDesktop, Order, RegisterHost
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.engine import open_database
from pupitre.up.child import Child, ChildSpec
from pupitre.up.ports import free_port
from pupitre.up.stream import LogStream
from pupitre.wire.broker import write_config
from tests.chaos.proxy import Proxy, Way
from tests.chaos.repeater import Repeater, allow
from tests.chaos.schedule import Action, Deed
from tests.cluster_rig import IMAGE, PROGRAM, USER, prepare

PATIENCE = 60.0
"""Seconds within which everything must be as it should be, once nothing is done to it any more."""
PUPITRE = (sys.executable, "-m", "pupitre")


class Part:
    """One process, whenever it lives. It speaks to the broker through its own proxy."""

    def __init__(self, spec: ChildSpec, proxy: Proxy | None, folder: Path, stream: LogStream) -> None:
        self.spec = spec
        self.proxy = proxy
        self._folder = folder
        self._stream = stream
        self._child: Child | None = None
        self.ready = asyncio.Event()
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    async def start(self, *, wait: bool = True) -> None:
        self.ready.clear()
        self.starts += 1
        self._child = await Child.start(self.spec, sockets=self._folder, stream=self._stream, on_ready=self.ready.set)
        if wait:
            await self.wait_ready()

    async def wait_ready(self) -> None:
        assert self._child is not None
        ended = asyncio.ensure_future(self._child.ended())
        ready = asyncio.ensure_future(self.ready.wait())
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            assert self.ready.is_set(), f"{self.spec.name} ended with {ended.result()}"
        finally:
            ready.cancel()

    async def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            await self._child.ended()
            self._child = None

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._child is not None
        async with asyncio.timeout(PATIENCE):
            return await self._child.ended()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._child is not None:
            await self._child.stop(PATIENCE)
            self._child = None

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, number)


class Rig:
    """See `rig`."""

    def __init__(self, settings: Settings, hosts: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.settings = settings
        self.hosts = tuple(hosts)
        self.log = log
        self.parts: dict[str, Part] = {}
        self.commands = Commands(open_database(settings, "portal", "commands"))
        self.answered: set[str] = set()
        self.told: dict[str, CommandState] = {}
        self._environment = environment
        self._file = log.open("ab")
        self._stream = LogStream(self._file, colours=False)
        self._proxies: list[Proxy] = []
        taken: set[int] = set()
        self._console_ports = {name: free_port(taken) for name in hosts}

    async def open(self) -> None:
        port = int(self.settings.nats_url.rsplit(":", 1)[1])
        config = write_config(self.settings, port=port, monitor_port=free_port({port}), hosts=self.hosts)
        allow(config)
        self._add("nats", ChildSpec("nats", (str(PROGRAM), "-c", str(config)), ready_line=b"Server is ready"))
        for name in ("cluster", "endpoint", *self.hosts):
            await self.add(name)

    async def add(self, name: str) -> Part:
        """A process of the role that the name says: ``cluster``, ``cluster-2``, ``endpoint``, or a host."""
        role = "host" if name in self.hosts else name.partition("-")[0]
        proxy = Proxy(int(self.settings.nats_url.rsplit(":", 1)[1]))
        await proxy.open()
        self._proxies.append(proxy)
        environment = {**self._environment, "PUPITRE_NATS_URL": f"tls://127.0.0.1:{proxy.port}"}
        if role == "host":
            environment |= {"PUPITRE_HOST_NAME": name, "PUPITRE_CONSOLE_PORT": str(self._console_ports[name])}
        return self._add(name, ChildSpec(name, (*PUPITRE, role), environment), proxy)

    def _add(self, name: str, spec: ChildSpec, proxy: Proxy | None = None) -> Part:
        self.parts[name] = part = Part(spec, proxy, self.settings.run_dir, self._stream)
        return part

    async def start(self) -> None:
        """Everything, and the hosts registered."""
        await self.parts["nats"].start()
        for part in self.parts.values():
            if part.spec.name != "nats":
                await part.start(wait=False)
        for part in self.parts.values():
            await part.wait_ready()
        for name in self.hosts:
            await self.succeed(RegisterHost(name=name, address="127.0.0.1", port=self._console_ports[name]))

    async def close(self) -> None:
        for part in self.parts.values():
            part.signal(signal.SIGCONT)
        await asyncio.gather(*(self.parts[name].stop() for name in self.hosts if name in self.parts))
        for part in self.parts.values():
            await part.kill()
        for proxy in self._proxies:
            await proxy.close()
        await self.commands.database.close()
        self._file.close()

    # What a person does

    async def ask(self, order: Order, *, user: str = USER, seconds: float = 30.0) -> Command:
        """A row like the portal's; noted as answered only once it is there."""
        now = now_ms()
        command = Command(
            str(uuid_utils.uuid7()), user, order, CommandState.QUEUED, created=now, deadline=now + int(seconds * 1000)
        )
        asked = await self.commands.request(command, interval_ms=0)
        self.answered.add(asked.id)
        return asked

    async def boot(self, *, seconds: float = 30.0) -> Command:
        return await self.ask(BootDesktop(desktop=str(uuid_utils.uuid7()), image=IMAGE), seconds=seconds)

    async def destroy(self, desktop: str | None, *, seconds: float = 30.0) -> Command:
        assert desktop is not None
        return await self.ask(DestroyDesktop(desktop=desktop), seconds=seconds)

    async def outcome(self, command: Command) -> Command:
        """The command once it has its outcome."""
        async with self.commands.database.listen(ANSWERED) as listener, asyncio.timeout(PATIENCE):
            while True:
                now = await self.commands.get(command.id)
                assert now is not None, command
                if now.state in FINAL_STATES:
                    self.told.setdefault(now.id, now.state)
                    return now
                await listener.heard()

    async def succeed(self, order: Order) -> Command:
        ended = await self.outcome(await self.ask(order))
        assert ended.state is CommandState.SUCCEEDED, ended
        return ended

    # What is done to it

    async def do(self, action: Action) -> None:
        """Carry out one action, to its end."""
        part = self.parts[action.target]
        match action.deed:
            case Deed.KILL:
                await part.kill()
                await pause(action.seconds)
                await part.start(wait=False)
            case Deed.FREEZE:
                part.signal(signal.SIGSTOP)
                await pause(action.seconds)
                part.signal(signal.SIGCONT)
            case Deed.USURP:
                await self._usurp(action)
            case Deed.DELAY:
                await self._hold(part, action.seconds, *Way)
            case Deed.DEAFEN:
                assert part.proxy is not None
                await self._hold(part, action.seconds, Way.FROM_BROKER, cut=True)
            case Deed.CUT:
                assert part.proxy is not None
                part.proxy.cut()

    async def _hold(self, part: Part, seconds: float, *ways: Way, cut: bool = False) -> None:
        assert part.proxy is not None
        part.proxy.hold(*ways)
        await pause(seconds)
        if cut:
            part.proxy.cut()
        part.proxy.release()

    async def _usurp(self, action: Action) -> None:
        """Two clusters at once, as when a frozen one was taken for dead.

        If the new one has taken over, the old one must find out and end; if it stands by still, it is its turn now.
        """
        old = self.parts[action.target]
        new = await self.add(f"cluster-{len(self._proxies)}")
        await new.start(wait=False)
        old.signal(signal.SIGSTOP)
        await pause(action.seconds)
        old.signal(signal.SIGCONT)
        self.parts["cluster"] = self.parts.pop(new.spec.name)
        if new.ready.is_set():
            await old.ended()
        else:
            await old.kill()

    # What became of it

    async def gather(self) -> Evidence:
        lasting = self.settings.hypervisor.startswith("simulated://")
        return await gather(self.settings, self.hosts, answered=self.answered, told=self.told, lasting=lasting)

    async def settled(self, seconds: float = PATIENCE) -> list[Violation]:
        """What still does not hold after ``seconds``; looked at again and again until nothing is left."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (wrong := violations(await self.gather())) and loop.time() < end:
            await pause(0.25)
        return wrong

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


async def pause(seconds: float) -> None:
    """An action of the schedule lasts this long; nothing else is waited for by the clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


@asynccontextmanager
async def rig(
    home: Path,
    hosts: Sequence[str] = ("host-1", "host-2"),
    *,
    image: Callable[[Settings], None] = prepare,
    start: bool = True,
    **changes: object,
) -> AsyncIterator[Rig]:
    """Started and registered; ended with nothing left. ``changes`` are settings."""
    values: dict[str, object] = {
        "nats_url": f"tls://127.0.0.1:{free_port(set())}",
        "image_store": home / "images",
        "heartbeat": 0.5,
        "host_timeout": 4.0,
        "status_update_interval": 1.0,
        "command_timeout_check_interval": 0.5,
        "connection_grace": 3.0,
        "hypervisor": "simulated://prompt?disks",
        "vcpu_overcommit": 1000.0,
        "log_level": "info",
        **changes,
    }
    settings = Settings.model_validate({"home": home, **values})
    environment = {f"PUPITRE_{key.upper()}": str(value) for key, value in {"home": home, **values}.items()}
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(image, settings)
    for name in hosts:
        pki.ensure_certificate(settings, pki.host_role(name))
    async with AsyncExitStack() as exit:
        made = Rig(settings, hosts, environment, home / "log")
        exit.push_async_callback(made.close)
        await made.open()
        if start:
            await made.start()
        yield made


@asynccontextmanager
async def repeating(rig: Rig, seed: int, share: float) -> AsyncIterator[Repeater]:
    """While it is open, ``share`` of all messages come more than once."""
    repeater = Repeater(rig.settings, random.Random(f"repeater {seed}"), share)
    await repeater.open()
    try:
        yield repeater
    finally:
        await repeater.close()
