"""A cluster whose processes die at a chosen step; see `tests.chaos.killable`."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals, pidfd_send_signal

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.up.processes.child import ChildSpec
from pupitre.up.processes.notify import Notifications
from pupitre.up.processes.stream import LogStream
from tests import ROOT
from tests.chaos.killable import KillSwitch
from tests.rigs.local_cluster import IMAGE, prepare
from tests.rigs.process_cluster import BROKER, PATIENCE, ClusterProcess, ProcessCluster, prepare_home, settings_of


class ForkServer:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.killable"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("PUPITRE_")},
        )  # fmt: skip

    async def fork(self, order: dict[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(await asyncio.to_thread(self._process.stdout.readline))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class KillableProcess(ClusterProcess):
    """One process of the nursery."""

    def __init__(self, spec: ChildSpec, folder: Path, stream: LogStream, fork_server: ForkServer, log: Path) -> None:
        super().__init__(spec, folder, stream)
        self.kill_switch = KillSwitch(folder / f"{spec.name}.fuse")
        self._sockets = folder
        self._fork_server = fork_server
        self._log = log
        self._pid = 0
        self._pidfd = -1
        self._dead = asyncio.Event()
        self._heard = contextlib.ExitStack()

    async def start(self, *, wait: bool = True) -> None:
        self.ready.clear()
        self._dead.clear()
        self._heard.close()
        notifications = self._heard.enter_context(
            Notifications(self._sockets / f"{self.spec.name}.notify", self._on_notice)
        )
        environment = {**self.spec.environment, "NOTIFY_SOCKET": notifications.address}
        order: dict[str, object] = {
            "role": self.spec.argv[-1],
            "fuse": str(self._sockets / f"{self.spec.name}.fuse"),
            "log": str(self._log),
            "environment": environment,
        }
        self._pid = await self._fork_server.fork(order)
        self._pidfd = os.pidfd_open(self._pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_death)
        if wait:
            await self.wait_ready()

    def _on_notice(self, name: str, value: str) -> None:
        if (name, value) == ("READY", "1"):
            self.ready.set()

    def _on_death(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._dead.set()

    async def wait_ready(self) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (self.ready, self._dead)]
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        if not self.ready.is_set():
            raise SetupError(f"{self.spec.name} ended before it was ready.", f"See {self._log}.")

    async def ended(self) -> int:
        """Its code is not known: the nursery does not wait for it."""
        await self._dead.wait()
        return 0

    @property
    def lives(self) -> bool:
        return bool(self._pid) and not self._dead.is_set()

    def signal(self, number: Signals) -> None:
        if self.lives:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and `_on_death` has yet to be called
                pidfd_send_signal(self._pidfd, number)

    async def kill(self) -> None:
        await self._end(SIGKILL)

    async def stop(self) -> None:
        await self._end(SIGTERM)

    async def _end(self, number: Signals) -> None:
        if self._pid:
            self.signal(number)
            async with asyncio.timeout(PATIENCE):
                await self._dead.wait()
        self._heard.close()


class KillableCluster(ProcessCluster):
    """See `killable_cluster`."""

    def __init__(self, settings: Settings, hosts: Sequence[str], environment: dict[str, str]) -> None:
        super().__init__(settings, hosts, environment, IMAGE)
        self._fork_server = ForkServer()

    def _add_process(self, spec: ChildSpec) -> ClusterProcess:
        if spec.name == BROKER:
            return super()._add_process(spec)
        part = KillableProcess(spec, self.settings.run_dir, self._stream, self._fork_server, self.log)
        self.processes[spec.name] = part
        return part

    def killable(self, name: str) -> KillableProcess:
        part = self.processes[name]
        assert isinstance(part, KillableProcess)
        return part

    async def close(self) -> None:
        await super().close()
        for part in self.processes.values():
            if isinstance(part, KillableProcess):
                part.kill_switch.close()
        self._fork_server.close()


@asynccontextmanager
async def killable_cluster(
    home: Path, hosts: Sequence[str] = ("host-1",), **changes: object
) -> AsyncIterator[KillableCluster]:
    """Started and registered; ended with nothing left. ``changes`` are settings."""
    settings, environment = settings_of(home, **changes)
    await asyncio.to_thread(prepare_home, settings, hosts, prepare)
    made = KillableCluster(settings, hosts, environment)
    try:
        await made.open()
        await made.start()
        yield made
    finally:
        await made.close()
