"""`pupitre up` from the first line to the last: one instance for each home.

Prepare, start in order, register this machine's hosts, tell the address, build the
second image behind everyone's back; then sleep until a signal. Ctrl-C or SIGTERM stops
all in order, a second one hurries.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TextIO

from pupitre import config
from pupitre.config import Settings
from pupitre.errors import Conflict, SetupError
from pupitre.up.broker_certificate import BrokerCertificate
from pupitre.up.hosts import WakeListener, local_hosts, wake_socket
from pupitre.up.processes import children
from pupitre.up.processes.child import Child, ChildSpec
from pupitre.up.processes.ports import check_portal_port
from pupitre.up.processes.stream import LogStream
from pupitre.up.processes.supervisor import Supervisor
from pupitre.up.record import Record

SECOND_IMAGE = "debian-desktop"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(settings: Settings, *, as_json: bool = False) -> None:
    """Run until a signal. Raises `SetupError` when it cannot start, `Conflict` when it already runs."""
    make_folders(settings)
    with _only_one(settings):
        if settings.portal_port:
            check_portal_port(settings.portal_host, settings.portal_port)
        with wake_socket() as cards:
            shared = children.environment(settings)
            if "wake_address" not in settings.model_fields_set:
                shared["PUPITRE_WAKE_ADDRESS"] = "{}:{}".format(*cards.getsockname())
            os.environ |= shared
            asyncio.run(Instance(config.load(), shared, cards, as_json=as_json).run())


FIRST_PRUNE, PRUNE_EVERY = 600.0, 24 * 3600.0
"""Seconds from the start until the databases are pruned, and from one time to the next."""


class Instance:
    """One run of `up`."""

    def __init__(
        self, settings: Settings, shared: dict[str, str], cards: socket.socket, *, as_json: bool = False
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._cards = cards
        self._as_json = as_json
        self._stream = LogStream(plain=settings.log_format == "json")
        self._begun = time.monotonic()
        self._stop = asyncio.Event()
        self._record = Record(settings.run_dir / "processes.json", settings.origin)
        self._supervisor: Supervisor | None = None
        self._builder: Child | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._listening: asyncio.DatagramTransport | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._told_to_stop)
        self._tell(f"Pupitre starts; its files are in {self._settings.home}")
        try:
            await self._until_told(self._start())
            await self._stop.wait()
        finally:
            await self._end()

    async def _start(self) -> None:
        await self._prepare()
        supervisor = Supervisor(
            children.stages(self._settings, self._shared),
            sockets=self._settings.run_dir,
            stream=self._stream,
            on_change=self._write_record,
        )
        self._supervisor = supervisor
        await supervisor.start(lambda name, seconds: self._tell(f"  {name:<14} {seconds:5.1f} s"))
        await self._register_hosts(supervisor)
        loop = asyncio.get_running_loop()
        self._listening, _ = await loop.create_datagram_endpoint(lambda: WakeListener(self._wake), sock=self._cards)
        if children.runs_broker(self._settings):
            certificate = BrokerCertificate(
                self._settings, renew=self._renew_certificate, reload=lambda: supervisor.reload("nats")
            )
            self._renewing = asyncio.create_task(certificate.keep(), name="broker certificate")
        self._pruning = asyncio.create_task(self._prune_daily(), name="prune")
        self._greet()
        if self._settings.demo_images:
            self._builder = await self._start_child(children.image_builder(self._settings, SECOND_IMAGE))

    async def _until_told(self, work: Coroutine[None, None, None]) -> None:
        """Do ``work``, unless somebody wants us to stop."""
        working = asyncio.ensure_future(work)
        told = asyncio.create_task(self._stop.wait())
        await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            return
        await working

    async def _prepare(self) -> None:
        process = await asyncio.create_subprocess_exec(  # noqa: TID251 - no libvirt in this process
            "setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "pupitre.up.prepare",
            start_new_session=True,
            stdout=sys.stderr,
        )  # fmt: skip
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
            raise
        if code:
            raise SetupError("What Pupitre needs could not be prepared.", "`pupitre doctor` checks this machine.")

    async def _register_hosts(self, supervisor: Supervisor) -> None:
        begun = time.monotonic()
        due = {children.child_name(self._settings, host) for host in local_hosts(self._settings) if host.is_due}
        specs = [supervisor.spec for supervisor in supervisor.supervisors if supervisor.spec.name in due]
        if not specs:
            return
        child = await self._start_child(children.registration(self._shared, specs))
        try:
            code = await child.ended()
        except asyncio.CancelledError:
            child.kill()
            raise
        if code:
            raise SetupError(
                "This machine's hosts could not be registered.", "What the cluster said is in the lines above."
            )
        self._tell(f"  {'registered':<14} {time.monotonic() - begun:5.1f} s")

    async def _renew_certificate(self) -> None:
        child = await self._start_child(children.renewal(self._shared))
        try:
            await child.ended()  # what it could not do it has said, and it is tried again
        except asyncio.CancelledError:
            child.kill()
            raise

    async def _prune_daily(self) -> None:
        pause = FIRST_PRUNE
        while True:
            await asyncio.sleep(pause)
            child = await self._start_child(children.pruning(self._settings))
            try:
                await child.ended()  # what it could not do it has said, and it is tried again
            except asyncio.CancelledError:
                child.kill()
                raise
            pause = PRUNE_EVERY

    def _wake(self, mac: str) -> None:
        """Somebody switches a machine on."""
        for host in local_hosts(self._settings):
            if host.mac == mac and self._supervisor:
                self._supervisor.wake(children.child_name(self._settings, host))

    async def _start_child(self, spec: ChildSpec) -> Child:
        return await Child.start(spec, sockets=self._settings.run_dir, stream=self._stream, on_ready=lambda: None)

    def _greet(self) -> None:
        from pupitre.up.demo_accounts import accounts_file, read_accounts

        seconds = time.monotonic() - self._begun
        if self._as_json:
            told = {"url": self._settings.origin, "accounts": str(accounts_file(self._settings)), "seconds": seconds}
            print(json.dumps(told), flush=True)
            return
        lines = [f"\nReady after {seconds:.1f} s: {self._settings.origin}\n"]
        lines += [f"  {entry['name']:<9} {entry['password']}" for entry in read_accounts(self._settings)]
        print("\n".join(lines), "\n\nCtrl-C stops everything.\n", flush=True)

    def _told_to_stop(self) -> None:
        if self._stop.is_set():
            if self._supervisor:
                self._supervisor.hurry()
            return
        self._stop.set()
        self._tell("Stopping. Once more to hurry.")

    async def _end(self) -> None:
        if self._listening:
            self._listening.close()
        for task in (self._renewing, self._pruning):
            if task:
                task.cancel()
                await asyncio.wait({task})
        if self._builder:
            await self._builder.stop(self._builder.spec.stop_within)
        if self._supervisor:
            await self._supervisor.stop()
        self._record.remove()
        self._tell("Stopped.")

    def _write_record(self) -> None:
        if self._supervisor:
            self._record.write(self._supervisor.supervisors)

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def make_folders(settings: Settings) -> None:
    """Raises `SetupError`. QEMU of another user reaches its disks through `host.isolation`, not through here."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        settings.home.chmod(0o700)
        for folder in (settings.run_dir, settings.home / "db"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise SetupError(
            f"The state folder {settings.home} cannot be made: {error.strerror}.",
            "Set PUPITRE_HOME to a folder that you may write.",
        ) from error


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """The lock ends with this process, however it ends."""
    path = settings.run_dir / "up.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(_where_it_is(file, settings.home)) from error
        file.truncate(0)
        file.write(f"{os.getpid()} {settings.origin}\n")
        file.flush()
        _sweep(settings)
        try:
            yield
        finally:
            _sweep(settings)


def _sweep(settings: Settings) -> None:
    """Remove the sockets of processes that were killed; while the lock is held, nobody uses any."""
    for path in settings.run_dir.rglob("*"):
        if path.is_socket():
            path.unlink(missing_ok=True)


def _where_it_is(file: TextIO, home: Path) -> str:
    file.seek(0)
    pid, _, origin = file.read().strip().partition(" ")
    return f"Pupitre already runs from {home}: process {pid or '?'}, at {origin or '?'}. Stop it with: kill {pid}"
