"""A whole Pupitre of real processes without a supervisor: who dies when, and who comes back, is the caller's to say.

Broker, cluster, endpoint and hosts, each a process of its own; the website's part is played here,
by the rows that the portal would write. Hosts keep their guests when they end.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pupitre.config import Settings
from pupitre.domain.command import FINAL_STATES, Command, CommandState, Order, RegisterHost
from pupitre.errors import CommandError, SetupError, Unavailable
from pupitre.pki import issuing
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.store.commands import ANSWERED, Commands
from pupitre.store.sql.engine import open_database
from pupitre.up.processes.child import Child, ChildSpec, describe_exit
from pupitre.up.processes.children import program
from pupitre.up.processes.ports import free_port
from pupitre.up.processes.stream import LogStream
from pupitre.wire.broker import write_config
from tests.rigs.command_writer import USER, CommandWriter
from tests.rigs.evidence import gather
from tests.rigs.history import Evidence, Violation, violations

PATIENCE = 60.0
"""Seconds within which everything must be as it should be, once nothing is done to it any more."""
PUPITRE = (sys.executable, "-m", "pupitre")
BROKER = "nats"


class ClusterProcess:
    """One process, whenever it lives."""

    def __init__(self, spec: ChildSpec, folder: Path, stream: LogStream) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self._folder = folder
        self._stream = stream
        self._child: Child | None = None

    def set_environment(self, environment: Mapping[str, str]) -> None:
        """Change its environment from its next start on."""
        self.spec = replace(self.spec, environment=environment)

    async def start(self, *, wait: bool = True) -> None:
        self.ready.clear()
        self._child = await Child.start(self.spec, sockets=self._folder, stream=self._stream, on_ready=self.ready.set)
        if wait:
            await self.wait_ready()

    async def wait_ready(self) -> None:
        """Raises `SetupError` when it ends before it is ready."""
        assert self._child is not None
        ended = asyncio.ensure_future(self._child.ended())
        ready = asyncio.ensure_future(self.ready.wait())
        try:
            async with timeout(PATIENCE):
                await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not self.ready.is_set():
                raise SetupError(f"{self.spec.name} ended with {describe_exit(ended.result())}.", "See its log.")
        finally:
            ready.cancel()
            ended.cancel()

    async def kill(self) -> None:
        """SIGKILL."""
        if self._child is not None:
            self._child.kill()
            await self._child.ended()
            self._child = None

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._child is not None:
            await self._child.stop(PATIENCE)
            self._child = None

    async def ended(self) -> int:
        """Exit code, once it has ended by itself."""
        assert self._child is not None
        async with timeout(PATIENCE):
            return await self._child.ended()

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def lives(self) -> bool:
        return self._child is not None and Path(f"/proc/{self._child.pid}").exists()

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, number)


class ProcessCluster(CommandWriter):
    """See `process_cluster`. ``answered`` are the ids that were asked for, ``told`` the final states that were shown.

    ``lasting`` as in `Evidence`: no longer so once hosts are shut down.
    """

    TIMEOUT = 30.0

    def __init__(self, settings: Settings, hosts: Sequence[str], environment: dict[str, str], image: str) -> None:
        super().__init__(Commands(open_database(settings, "portal", "commands")), image)
        self.settings = settings
        self.hosts = tuple(hosts)
        self.log = settings.home / "log"
        self.environment = environment
        self.processes: dict[str, ClusterProcess] = {}
        self.answered: set[str] = set()
        self.told: dict[str, CommandState] = {}
        self.lasting = settings.hypervisor.startswith("simulated://")
        self._file = self.log.open("ab")
        self._stream = LogStream(self._file, colours=False)
        self._console_ports = {name: free_port() for name in hosts}

    async def open(self, on_config: Callable[[Path], None] = lambda _: None) -> None:
        """``on_config`` may change the broker's configuration."""
        port = int(self.settings.nats_url.rsplit(":", 1)[1])
        config = write_config(self.settings, port=port, hosts=self.hosts)
        on_config(config)
        argv = (str(program("nats-server")), "-c", str(config))
        self._add_process(ChildSpec(BROKER, argv, ready_line=b"Server is ready"))
        for name in ("cluster", "endpoint", *self.hosts):
            self.add(name)

    def add(self, name: str, **settings: str) -> ClusterProcess:
        """A process of the role that the name says: ``cluster``, ``cluster-2``, ``endpoint``, or a host."""
        environment = {**self.environment, **{f"PUPITRE_{key.upper()}": value for key, value in settings.items()}}
        role = name.partition("-")[0]
        if name in self.hosts:
            role = "host"
            environment |= {"PUPITRE_HOST_NAME": name, "PUPITRE_CONSOLE_PORT": str(self._console_ports[name])}
        return self._add_process(ChildSpec(name, (*PUPITRE, role), environment))

    def _add_process(self, spec: ChildSpec) -> ClusterProcess:
        self.processes[spec.name] = part = ClusterProcess(spec, self.settings.run_dir, self._stream)
        return part

    async def start(self) -> None:
        """Start everything and register the hosts."""
        await self.processes[BROKER].start()
        others = [part for name, part in self.processes.items() if name != BROKER]
        for part in others:
            await part.start(wait=False)
        for part in others:
            await part.wait_ready()
        for name in self.hosts:
            await self.succeed(RegisterHost(name=name, address="127.0.0.1", port=self.console_port(name)))

    def console_port(self, host: str) -> int:
        return self._console_ports[host]

    async def close(self) -> None:
        for part in self.processes.values():
            part.signal(signal.SIGCONT)
        await asyncio.gather(*(self.processes[name].stop() for name in self.hosts))
        for part in self.processes.values():
            await part.kill()
        await self.commands.database.close()
        self._file.close()

    # What a person does

    async def ask(self, order: Order, *, user: str = USER, timeout: float | None = None) -> Command:
        """See `CommandWriter.ask`; noted as answered only once it is there."""
        asked = await super().ask(order, user=user, timeout=timeout)
        self.answered.add(asked.id)
        return asked

    async def outcome(self, command: Command) -> Command:
        """See `outcomes`."""
        return (await self.outcomes([command]))[0]

    async def outcomes(self, given: Sequence[Command]) -> list[Command]:
        """The commands once all have their outcome. Raises `TimeoutError` when one has none long after its time-out."""
        ended: dict[str, Command] = {}
        wanted = {command.id for command in given}
        left = max((command.deadline for command in given), default=0) - now_ms()
        try:
            async with timeout(max(left, 0) / 1000 + PATIENCE):
                await self._note_outcomes(wanted, ended)
        except TimeoutError as error:
            silent = ", ".join(sorted(wanted - ended.keys())[:5])
            gone = ", ".join(self.ended()) or "none"
            raise TimeoutError(
                f"{len(wanted - ended.keys())} of {len(wanted)} commands have no outcome: {silent}. "
                f"Processes that are gone: {gone}.\n{self.tail()}"
            ) from error
        return [ended[command.id] for command in given]

    async def _note_outcomes(self, wanted: set[str], ended: dict[str, Command]) -> None:
        """Return once all of ``wanted`` are in ``ended``."""
        version = 0
        async with self.commands.database.listen(ANSWERED) as listener:
            while not wanted <= ended.keys():
                try:
                    changes = await self.commands.changes(version)
                except Unavailable:
                    await asyncio.sleep(0.5)
                    continue
                for change in changes:
                    version = change.version
                    if change.command.id in wanted and change.command.state in FINAL_STATES:
                        self.told.setdefault(change.command.id, change.command.state)
                        ended[change.command.id] = change.command
                if not wanted <= ended.keys():
                    await listener.wait()

    async def freeze(self, name: str) -> None:
        """SIGSTOP, but not while the process holds SQLite's lock on a file: that would freeze everybody.

        A server's lock waits for nobody like that: there it is frozen at once.
        """
        async with timeout(PATIENCE):
            while True:
                self.processes[name].signal(signal.SIGSTOP)
                if not await asyncio.to_thread(_is_locked, self.settings):
                    return
                self.processes[name].signal(signal.SIGCONT)
                await asyncio.sleep(0.01)

    async def succeed(self, order: Order) -> Command:
        """Raises `CommandError` when it does not."""
        ended = await self.outcome(await self.ask(order))
        if ended.state is not CommandState.SUCCEEDED:
            raise CommandError(f"{ended.kind} has {ended.state}: {ended.fault}")
        return ended

    # What became of it

    async def gather(self) -> Evidence:
        return await gather(self.settings, self.hosts, answered=self.answered, told=self.told, lasting=self.lasting)

    def ended(self) -> list[str]:
        """Processes that are not there, though nobody ended them."""
        return [name for name, part in self.processes.items() if not part.lives]

    async def settled(self, seconds: float = PATIENCE) -> list[Violation]:
        """Rules that still do not hold after ``seconds``; looked at again and again until nothing is left."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (wrong := violations(await self.gather())) and loop.time() < end:  # noqa: ASYNC110 - disks tell nobody
            await asyncio.sleep(0.25)
        return wrong

    def tail(self, lines: int = 60) -> str:
        """Last output of the processes."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _is_locked(settings: Settings) -> bool:
    """Whether somebody holds the lock on one of the files."""
    for path in (settings.home / "db").glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path, timeout=0.3, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return True
    return False


def settings_of(home: Path, **changes: object) -> tuple[Settings, dict[str, str]]:
    """Settings with short intervals, and the environment that gives them to processes."""
    values: dict[str, object] = {
        "home": home,
        "nats_url": f"tls://127.0.0.1:{free_port()}",
        "image_store": home / "images",
        "heartbeat": 0.5,
        "host_timeout": 4.0,
        "status_update_interval": 1.0,
        "command_timeout_check_interval": 0.5,
        "connection_grace": 3.0,
        "hypervisor": "simulated://prompt?disks",
        "vcpu_overcommit": 1000.0,
        **changes,
    }
    return Settings.model_validate(values), {f"PUPITRE_{key.upper()}": str(value) for key, value in values.items()}


def prepare_home(settings: Settings, hosts: Sequence[str], prepare: Callable[[Settings], None]) -> None:
    """Preparation before the first process starts; ``prepare`` makes databases, certificates and an image."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    prepare(settings)
    for role in (BROKER, "endpoint", "cluster", *map(issuing.host_role, hosts)):
        issuing.ensure_certificate(settings, role)


@asynccontextmanager
async def process_cluster(
    home: Path, hosts: Sequence[str], prepare: Callable[[Settings], None], image: str, **changes: object
) -> AsyncIterator[ProcessCluster]:
    """Started and registered; ended with no process left. ``changes`` are settings."""
    settings, environment = settings_of(home, **changes)
    await asyncio.to_thread(prepare_home, settings, hosts, prepare)
    made = ProcessCluster(settings, hosts, environment, image)
    try:
        await made.open()
        await made.start()
        yield made
    finally:
        await made.close()
