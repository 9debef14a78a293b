"""Endpoint, cluster and hosts of one test in this process, over a real nats-server and real databases.

Guests are simulated; overlays, journals, consoles, certificates and databases are real.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry

from pupitre.cluster.process import run as run_cluster
from pupitre.config import Settings
from pupitre.domain.command import Command, CommandState, RegisterHost
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.endpoint.process import run as run_endpoint
from pupitre.host.agent import HostAgent, journal_path
from pupitre.host.console.tickets import ConsoleServer
from pupitre.host.hypervisor.overlays import Overlays
from pupitre.host.journal import Journal
from pupitre.host.simulation.hypervisor import Behaviour, SimulatedHypervisor
from pupitre.images.manifest import Manifest
from pupitre.images.store import ImageStore
from pupitre.net.ops import Ops
from pupitre.pki import issuing
from pupitre.runtime.clock import now_ms
from pupitre.store.admin import migrate
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.sql.dialect import Listening
from pupitre.store.sql.engine import Database, open_database
from pupitre.store.status import CHANGED, Status
from pupitre.up.processes.ports import free_port
from pupitre.wire.broker import write_config
from pupitre.wire.connection import BrokerConnection
from tests.rigs.command_writer import CommandWriter

T = TypeVar("T")
PROGRAM = Path(sys.executable).with_name("nats-server")
PATIENCE = 20.0
IMAGE = "plain"


@dataclass(frozen=True)
class Topic:
    """What a test waits for: commits to ``database`` that wake ``name``."""

    database: Database
    name: str

    def listen(self) -> Listening:
        return self.database.listen(self.name)


async def eventually(condition: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str = "") -> None:
    """Look until it is so; for what no bell tells a test."""
    pause = asyncio.Event()
    async with asyncio.timeout(PATIENCE):
        while True:
            found = condition()
            if (found if isinstance(found, bool) else await found) is True:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pause.wait(), 0.02)


class Broker:
    """nats-server with the configuration that `pupitre up` gives it."""

    def __init__(self, settings: Settings, hosts: tuple[str, ...]) -> None:
        self.port = int(settings.nats_url.rsplit(":", 1)[1])
        issuing.ensure_certificate(settings, "nats")
        self._config = write_config(settings, port=self.port, hosts=hosts)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # The kernel ends it with the test worker, however that ends.
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", str(PROGRAM), "-c", str(self._config)),
            stdout=subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while b"Server is ready" not in (line := await self._process.stderr.readline()):
                assert line, "nats-server ended"
        self._reader = asyncio.create_task(self._drain(self._process.stderr))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        if self._reader:
            await self._reader
        self._process = None

    def freeze(self) -> None:
        """Its connections stay open, and nothing moves."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @staticmethod
    async def _drain(stream: asyncio.StreamReader) -> None:
        while await stream.readline():
            pass


def small_settings(home: Path, **changes: object) -> Settings:
    """Short intervals, so that a test need not wait for what takes minutes in a school."""
    values: dict[str, object] = {
        "home": home,
        "image_store": home / "images",
        "nats_url": f"tls://127.0.0.1:{free_port()}",
        "heartbeat": 0.2,
        "host_timeout": 1.2,
        "status_update_interval": 0.4,
        "command_timeout": 60,
        "command_timeout_check_interval": 0.05,
        "connection_grace": 1.0,
        "hypervisor": "simulated://prompt",
    }
    return Settings.model_validate(values | changes)


@dataclass
class HostRig:
    """One host; ``crash`` and ``start`` are the end and the next life of its process, guests kept."""

    settings: Settings
    hypervisor: SimulatedHypervisor
    port: int = field(default_factory=free_port)
    agent: HostAgent = field(init=False)
    journal: Journal = field(init=False)
    link: BrokerConnection = field(init=False)
    overlays: Overlays = field(init=False)
    console: ConsoleServer = field(init=False)
    registry: CollectorRegistry = field(init=False)
    _task: asyncio.Task[bool] | None = None

    @property
    def name(self) -> str:
        return self.settings.host_name

    async def start(self) -> None:
        settings, role = self.settings, issuing.host_role(self.name)
        certificates = issuing.ensure_certificate(settings, role)
        self.overlays = Overlays(settings.host_dir / "overlays")
        self.overlays.open()
        self.journal = Journal(journal_path(settings))
        self.agent = HostAgent(settings, self.hypervisor, self.overlays, ImageStore(settings.images_dir), self.journal)
        self.console = ConsoleServer(self.name, certificates, self.agent, settings.host_dir, port=self.port)
        tls = issuing.client_context(certificates, role)
        self.registry = CollectorRegistry()
        self.link = BrokerConnection(settings.nats_url, role, tls, registry=self.registry, on_change=self._changed)
        await self.console.start()
        await self.link.open()
        await self.agent.start(self.link, self.console)
        self._task = asyncio.create_task(self.agent.run(), name=f"host {self.name}")

    def _changed(self, connected: bool) -> None:
        if connected:
            self.agent.report_all()

    def lives(self) -> bool:
        return self._task is not None and not self._task.done()

    async def ended(self) -> bool:
        """Wait until it ends by itself; whether it did so in order to shut its machine down."""
        assert self._task is not None
        async with asyncio.timeout(PATIENCE):
            return await asyncio.shield(self._task)

    async def crash(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self.agent.stop()
        await self.console.stop()
        await self.link.close()
        await self.journal.close()


class LocalCluster(CommandWriter):
    """See `local_cluster`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Commands(open_database(settings, "portal", "commands")), IMAGE)
        self.settings = settings
        self.broker = Broker(settings, ("host-1", "host-2"))
        self.hosts: list[HostRig] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.ops: dict[str, Ops] = {}
        self.status = Status(open_database(settings, "portal", "status", read_only=True))
        self.answered = Topic(self.commands.database, ANSWERED)
        self.changed = Topic(self.status.database, CHANGED)

    async def start_cluster(self) -> None:
        self.start("cluster", run_cluster)

    async def start_endpoint(self) -> None:
        self.start("endpoint", run_endpoint)

    def start(self, name: str, run: Callable[[Settings, Ops], Awaitable[None]]) -> None:
        self.ops[name] = Ops(name)
        self._tasks[name] = asyncio.create_task(_run(run, self.settings, self.ops[name]), name=name)

    async def ended(self, name: str) -> None:
        """Wait until ``cluster`` or ``endpoint`` has ended by itself, as it does when it is halted."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self._tasks[name])
        del self._tasks[name]

    def lives(self, name: str) -> bool:
        return not self._tasks[name].done()

    async def stop(self, name: str) -> None:
        """End ``cluster`` or ``endpoint``; a failure it ended with before is the test's failure."""
        task = self._tasks.pop(name)
        if task.done():
            await task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def add_host(
        self,
        name: str = "host-1",
        behaviour: Behaviour = Behaviour.PROMPT,
        *,
        delay: float | None = None,
        memory_mib: int = 65536,
        register: bool = True,
        broker_port: int | None = None,
    ) -> HostRig:
        """``broker_port`` is that of a proxy, where the host reaches the broker through one."""
        hypervisor = SimulatedHypervisor(behaviour, self.settings.home / "serials", delay, memory_mib)
        await hypervisor.open()
        broker = f"tls://127.0.0.1:{broker_port}" if broker_port else self.settings.nats_url
        host = HostRig(self.settings.model_copy(update={"host_name": name, "nats_url": broker}), hypervisor)
        self.hosts.append(host)
        await host.start()
        if register:
            command = await self.ask(RegisterHost(name=name, address="127.0.0.1", port=host.console.port))
            await self.outcome(command, CommandState.SUCCEEDED)
            await self.wait_host(name, HostState.READY)
        return host

    async def running(self) -> Command:
        """A boot that has succeeded."""
        command = await self.outcome(await self.boot(), CommandState.SUCCEEDED)
        await self.wait_desktop(command, DesktopState.RUNNING)
        return command

    async def outcome(self, command: Command, state: CommandState) -> Command:
        """The command once it is in ``state``; fails at any other end."""

        def ended(now: Command | None) -> bool:
            assert now is not None
            assert now.finished is None or now.state is state, now
            return now.state is state

        found = await until(self.answered, lambda: self.commands.get(command.id), ended)
        assert found is not None
        return found

    async def command_where(self, command: Command, condition: Callable[[Command], bool]) -> Command:
        found = await until(
            self.answered, lambda: self.commands.get(command.id), lambda now: now is not None and condition(now)
        )
        assert found is not None
        return found

    async def wait_desktop(self, command: Command, state: DesktopState) -> Desktop:
        return await self.desktop_where(command, lambda desktop: desktop.state is state)

    async def desktop_where(self, command: Command, condition: Callable[[Desktop], bool]) -> Desktop:
        assert command.desktop is not None
        desktop_id = command.desktop
        found = await until(
            self.changed, lambda: self.status.desktop(desktop_id), lambda now: now is not None and condition(now)
        )
        assert found is not None
        return found

    async def wait_host(self, name: str, state: HostState) -> Host:
        found = await until(
            self.changed, lambda: self.status.host(name), lambda now: now is not None and now.state is state
        )
        assert found is not None
        return found

    async def wait_link(self, connected: bool) -> None:
        async def link() -> bool | None:
            links = await self.status.links()
            return links[0].connected if links else None

        await until(self.changed, link, lambda now: now is connected)

    async def close(self) -> None:
        """Everything ends, the broker last, also where one of them ended in the failure that the test is about."""
        async with AsyncExitStack() as exit:
            exit.push_async_callback(self.broker.kill)
            for database in (self.status.database, self.commands.database):
                exit.push_async_callback(database.close)
            for host in self.hosts:
                exit.push_async_callback(host.hypervisor.close)
                exit.push_async_callback(host.crash)
            for name in reversed(self._tasks):
                exit.push_async_callback(self.stop, name)


async def until(topic: Topic, look: Callable[[], Awaitable[T]], condition: Callable[[T], bool]) -> T:
    """What ``look`` gives once ``condition`` holds for it, looking again with each ring."""
    last: T | None = None
    try:
        async with topic.listen() as listener, asyncio.timeout(PATIENCE):
            while True:
                last = await look()
                if condition(last):
                    return last
                await listener.wait()
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE} s; last: {last}") from None


async def _run(run: Callable[[Settings, Ops], Awaitable[None]], settings: Settings, ops: Ops) -> None:
    await run(settings, ops)


def prepare(settings: Settings) -> None:
    """Databases, certificates and one image, as `pupitre up` makes them."""
    for name in ("commands", "status", "cluster"):
        migrate.upgrade(name, settings.database_url(name))
    for role in ("nats", "endpoint", "cluster"):
        issuing.ensure_certificate(settings, role)
    store = ImageStore(settings.images_dir)
    with store.build(IMAGE, "Plain", "") as build:
        disk = build.folder / "disk"
        disk.write_bytes(bytes(1 << 20))
        spec = ImageSpec(IMAGE, "disk", DiskFormat.RAW, memory_mib=256, vcpus=1)
        store.publish(Manifest(spec, "Plain", "", now_ms()), {"disk": disk})


@asynccontextmanager
async def local_cluster(
    home: Path, *, start: tuple[str, ...] = ("cluster", "endpoint"), **changes: object
) -> AsyncIterator[LocalCluster]:
    """A broker, a cluster and an endpoint; hosts by `LocalCluster.add_host`."""
    settings = small_settings(home, **changes)
    await asyncio.to_thread(prepare, settings)
    async with AsyncExitStack() as exit:
        made = LocalCluster(settings)
        exit.push_async_callback(made.close)
        await made.broker.start()
        for name in start:
            await (made.start_cluster() if name == "cluster" else made.start_endpoint())
        if len(start) == 2:
            await made.wait_link(True)
        yield made


@asynccontextmanager
async def wire_link(
    settings: Settings, role: str, *, registry: CollectorRegistry | None = None
) -> AsyncIterator[BrokerConnection]:
    """A link of this role, for what a test says or hears in its place."""
    certificates = issuing.ensure_certificate(settings, role)
    link = BrokerConnection(
        settings.nats_url, role, issuing.client_context(certificates, role), registry=registry or CollectorRegistry()
    )
    await link.open()
    try:
        yield link
    finally:
        await link.close()
