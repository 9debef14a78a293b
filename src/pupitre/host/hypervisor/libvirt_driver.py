"""`Hypervisor` on libvirt: the only file that imports it.

What stays true: no libvirt call runs on the event loop, each has a time limit, and
all of one connection share one bounded pool of threads. Domains are transient: when
a guest ends, libvirt forgets it, and a name can never be taken by a dead one.
Desktop and boot generation live in the domain's metadata, so any process that opens
the same connection knows its guests. A domain without our metadata is none of ours.

``qemu:///embed`` is libvirt's QEMU driver inside this process, no daemon; its files
are below ``root``, one process per root. https://libvirt.org/drvqemu.html
"""

import asyncio
import contextlib
import functools
import io
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import structlog
from lxml import etree
from PIL import Image

from pupitre.domain.host import HostFacts
from pupitre.domain.overhead import over_books_mib
from pupitre.errors import HypervisorError, NoSuchDomain, SetupError
from pupitre.host.diagnosis import explain
from pupitre.host.hypervisor import domain_xml, guest_process
from pupitre.host.hypervisor.confinement import require_driver
from pupitre.host.hypervisor.port import DISK_FULL, Guest, GuestState, SeenGuest
from pupitre.runtime.timeouts import timeout
from pupitre.timings import LIBVIRT_CALL_LIMIT, LIBVIRT_EVENT_LIMIT, LIBVIRT_START_LIMIT

# Read when libvirt is imported. What it refuses, it raises; otherwise it would also print it,
# and a warning at every start. Set the variable to see them.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
import libvirt

T = TypeVar("T")

THREADS = 12
RESERVED_MIB = 2048
"""Memory that guests do not get, unless the setting says otherwise."""
SCHEMAS = Path("/usr/share/libvirt/schemas")

log = structlog.get_logger(__name__)

_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "The guest shut itself down.",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "The guest was stopped.",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "The guest crashed.",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "The guest's emulator ended by itself.",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "The guest was saved.",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "The guest was moved to another host.",
}
_GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID})


@dataclass(frozen=True, slots=True)
class Connection:
    """``root`` is the folder of ``qemu:///embed``; ``serials`` where serial sockets go; see `confinement`."""

    uri: str
    serials: Path
    overlays: Path
    root: Path | None = None
    memory_mib: int | None = None
    mandatory: bool = False


class LibvirtHypervisor:
    """See `pupitre.host.hypervisor.port.Hypervisor`."""

    def __init__(self, connection: Connection, machine: domain_xml.Machine) -> None:
        self._settings = connection
        self._machine = machine
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt")
        self._libvirt: libvirt.virConnect | None = None
        self._listening: int | None = None
        self._changes: asyncio.Queue[SeenGuest | None] = asyncio.Queue()
        self._locks: dict[str, asyncio.Lock] = {}
        self._boots: dict[str, int] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._memory: dict[str, int] = {}
        self._waiting: set[str] = set()
        self._confining: set[asyncio.Task[None]] = set()
        self._has_cgroups = guest_process.has_cgroups()

    async def open(self) -> None:
        _start_event_loop()
        self._settings.serials.mkdir(parents=True, exist_ok=True)
        self._settings.serials.chmod(0o711)
        try:
            connection = self._libvirt = await self._call(_open, self._uri)
        except libvirt.libvirtError as error:
            raise SetupError(
                f"libvirt cannot open {self._settings.uri}: {_said(error)}.", "`pupitre doctor` says what is missing."
            ) from error
        connection, loop = self._connection, asyncio.get_running_loop()

        def heard(_connection: Any, dom: libvirt.virDomain, event: int, detail: int, _nothing: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before libvirt's thread
                loop.call_soon_threadsafe(self._hear, dom.UUIDString(), event, detail)

        self._listening = await self._call(
            connection.domainEventRegisterAny, None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, heard, None
        )
        if self._settings.mandatory:
            require_driver(await self._call(connection.getCapabilities))
        if self._machine.emulator:
            await self._probe()
        await self.guests()

    @property
    def _uri(self) -> str:
        uri = self._settings.uri
        return f"qemu:///embed?root={self._settings.root}" if uri.startswith("qemu:///embed") else uri

    async def _probe(self) -> None:
        """Let libvirt learn what the emulator can do, which takes seconds the first time."""
        try:
            await self._call(
                self._connection.getDomainCapabilities,
                str(self._machine.emulator), "x86_64", "q35", self._machine.accelerator, 0,
                limit=LIBVIRT_START_LIMIT,
            )  # fmt: skip
        except libvirt.libvirtError as error:
            # Starts will fail with the reason; a host without an emulator still has to be seen.
            log.error("emulator_probe_failed", reason=str(explain(self._machine, None, _said(error))))

    async def close(self) -> None:
        if self._libvirt is not None:
            connection, self._libvirt = self._libvirt, None
            with contextlib.suppress(libvirt.libvirtError):
                if self._listening is not None:
                    await self._call(connection.domainEventDeregisterAny, self._listening)
                await self._call(_close, connection, self._uri)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._changes.put_nowait(None)

    async def facts(self) -> HostFacts:
        connection = self._connection
        try:
            _model, memory, cpus, *_ = await self._call(connection.getInfo)
            emulator = _version(await self._call(connection.getVersion))
            name = await self._call(connection.getType)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt does not describe this host: {_said(error)}.") from error
        disk = await asyncio.to_thread(_free_mib, self._settings.overlays)
        accelerator = {"qemu": "tcg"}.get(self._machine.accelerator, self._machine.accelerator)
        taken = await self._taken()
        if self._machine.emulator:
            memory = psutil.virtual_memory().total >> 20  # libvirt adds up NUMA nodes, which may not say all
        return HostFacts(
            memory_mib=self._settings.memory_mib or max(int(memory) - RESERVED_MIB, 512),
            vcpus=int(cpus),
            disk_free_mib=disk,
            hypervisor=self._settings.uri,
            accelerator=accelerator,
            version=f"{name} {emulator}, libvirt {_version(libvirt.getVersion())}",
            guests_mib=sum(resident for _, resident in taken),
            over_books_mib=over_books_mib(taken, accelerator),
        )

    async def ensure_running(self, guest: Guest) -> None:
        async with self._lock(guest.desktop):
            seen = await self._seen(guest.desktop)
            if seen is not None and seen.boot > guest.boot:
                raise HypervisorError(
                    f"Boot {guest.boot} of this desktop was overtaken: boot {seen.boot} runs already."
                )
            if seen is not None and (seen.boot, seen.state) == (guest.boot, GuestState.RUNNING):
                if seen.reason:
                    await self._resume(guest.desktop)
                return
            if seen is not None:
                await self._destroy(guest.desktop)
            serial = self._serial_path(guest.desktop)
            root = domain_xml.domain(guest, self._machine, serial)
            self._boots[guest.desktop] = guest.boot
            try:
                await self._call(
                    self._connection.createXML,
                    etree.tostring(root, encoding="unicode"),
                    libvirt.VIR_DOMAIN_START_VALIDATE,
                    limit=LIBVIRT_START_LIMIT,
                )
            except libvirt.libvirtError as error:
                self._boots.pop(guest.desktop, None)
                raise await asyncio.to_thread(explain, self._machine, guest, _said(error)) from error
            task = asyncio.create_task(self._confine(guest.desktop, guest.spec.memory_mib))
            self._confining.add(task)
            task.add_done_callback(self._confining.discard)

    async def _confine(self, desktop: str, memory_mib: int) -> None:
        """Put the guest behind the processes that control it, after its start: nobody waits for this."""
        self._memory[desktop] = memory_mib
        if pid := guest_process.pid_of(desktop, self._settings.root):
            await asyncio.to_thread(guest_process.confine, pid, memory_mib)
        if self._has_cgroups:
            limit = (memory_mib + guest_process.ROOM_MIB) << 10
            try:
                dom = await self._find(desktop)
                await self._call(dom.setSchedulerParameters, {"cpu_shares": guest_process.CPU_SHARES})
                await self._call(dom.setMemoryParameters, {"hard_limit": limit}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except NoSuchDomain:
                pass
            except (libvirt.libvirtError, HypervisorError) as error:
                self._has_cgroups = False
                log.warning("cgroup_limits_unavailable", reason=str(error))

    async def _taken(self) -> list[tuple[int, int]]:
        """Each guest's own memory and what its emulator takes of this host's, both in MiB."""
        taken = []
        for desktop in list(self._boots):
            pid = guest_process.pid_of(desktop, self._settings.root) if self._machine.emulator else None
            if pid is None:
                continue
            if desktop not in self._memory:  # of an earlier process of this host
                try:
                    self._memory[desktop] = await self._call((await self._find(desktop)).maxMemory) >> 10
                except (libvirt.libvirtError, HypervisorError):
                    continue
            taken.append((self._memory[desktop], guest_process.resident_mib(pid)))
        return taken

    async def resume(self, desktop: str) -> None:
        seen = await self._seen(desktop)
        if seen is not None and seen.reason:
            await self._resume(desktop)

    async def ensure_gone(self, desktop: str) -> None:
        async with self._lock(desktop):
            await self._destroy(desktop)
        self._locks.pop(desktop, None)

    async def shut_down(self, desktop: str) -> None:
        dom = await self._find(desktop)
        try:
            await self._call(dom.shutdown)  # by ACPI: our guests have no agent channel
        except libvirt.libvirtError as error:
            raise _lost(error, "does not hear its power button") from error

    async def guests(self) -> dict[str, SeenGuest]:
        try:
            domains = await self._call(self._connection.listAllDomains, 0)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt does not list its domains: {_said(error)}.") from error
        seen = [await self._look(dom) for dom in domains]
        guests = {guest.desktop: guest for guest in seen if guest is not None}
        self._boots.update({guest.desktop: guest.boot for guest in guests.values()})
        return guests

    async def changes(self) -> AsyncIterator[SeenGuest]:
        while (change := await self._changes.get()) is not None:
            yield change

    async def console(self, desktop: str) -> socket.socket:
        dom = await self._find(desktop)
        try:
            descriptor = await self._call(dom.openGraphicsFD, 0, libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
        except libvirt.libvirtError as error:
            raise _lost(error, "gives no console") from error
        console = socket.socket(fileno=descriptor)
        console.setblocking(False)
        return console

    async def screenshot(self, desktop: str) -> bytes:
        dom = await self._find(desktop)
        try:
            return await self._call(functools.partial(_screenshot, self._connection, dom))
        except libvirt.libvirtError as error:
            raise _lost(error, "gives no picture of its screen") from error

    async def serial(self, desktop: str) -> Path:
        await self._find(desktop)
        return self._serial_path(desktop)

    # -- what libvirt says

    def _hear(self, desktop: str, event: int, detail: int) -> None:
        boot = self._boots.get(desktop)
        if boot is None:
            return  # not ours, or a start that failed and was answered already
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            change = SeenGuest(desktop, boot, GuestState.RUNNING)
        elif event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR:
            self._waiting.add(desktop)
            change = SeenGuest(desktop, boot, GuestState.RUNNING, DISK_FULL)
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and desktop in self._waiting:
            self._waiting.discard(desktop)
            change = SeenGuest(desktop, boot, GuestState.RUNNING)
        elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            reason = _STOPPED.get(detail, "The guest stopped.")
            orderly = detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN
            change = SeenGuest(desktop, boot, GuestState.STOPPED, reason, orderly)
            del self._boots[desktop]
            self._waiting.discard(desktop)
            self._memory.pop(desktop, None)
            if desktop in self._stops:
                self._stops[desktop].set()
        else:
            return
        self._changes.put_nowait(change)

    async def _seen(self, desktop: str) -> SeenGuest | None:
        try:
            return await self._look(await self._find(desktop))
        except NoSuchDomain:
            return None

    async def _look(self, dom: libvirt.virDomain) -> SeenGuest | None:
        """The guest in ``dom``; None if it is not ours, or ended while we looked."""
        try:
            metadata = await self._call(dom.metadata, libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.NAMESPACE, 0)
            state, reason = await self._call(dom.state, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _GONE | {libvirt.VIR_ERR_NO_DOMAIN_METADATA}:
                return None
            raise HypervisorError(f"libvirt does not describe a guest: {_said(error)}.") from error
        desktop, boot = domain_xml.identity(metadata)
        waits = state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR
        if waits:
            self._waiting.add(desktop)
        if state in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED} or waits:
            return SeenGuest(desktop, boot, GuestState.RUNNING, DISK_FULL if waits else None)
        if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_STARTING_UP:
            return SeenGuest(desktop, boot, GuestState.STARTING)
        return SeenGuest(desktop, boot, GuestState.STOPPED, "The guest does not run.")

    async def _find(self, desktop: str) -> libvirt.virDomain:
        try:
            return await self._call(self._connection.lookupByUUIDString, domain_xml.desktop_id(desktop))
        except libvirt.libvirtError as error:
            raise _lost(error, "is not found") from error

    async def _destroy(self, desktop: str) -> None:
        """Return when the guest is gone and its end was heard, so that it is not taken for the next boot's."""
        stopped = self._stops[desktop] = asyncio.Event()
        try:
            dom = await self._find(desktop)
            await self._call(dom.destroy)
            if desktop in self._boots:
                async with timeout(LIBVIRT_EVENT_LIMIT):
                    await stopped.wait()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _GONE:
                raise HypervisorError(f"libvirt cannot stop the guest: {_said(error)}.") from error
        except (NoSuchDomain, TimeoutError):
            pass
        finally:
            del self._stops[desktop]
        self._serial_path(desktop).unlink(missing_ok=True)

    async def _resume(self, desktop: str) -> None:
        dom = await self._find(desktop)
        try:
            await self._call(dom.resume)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"The guest waits and cannot go on: {_said(error)}.") from error

    # -- how libvirt is called

    @property
    def _connection(self) -> libvirt.virConnect:
        if self._libvirt is None:
            raise HypervisorError("The connection to the hypervisor is not open.")
        return self._libvirt

    def _lock(self, desktop: str) -> asyncio.Lock:
        return self._locks.setdefault(desktop, asyncio.Lock())

    def _serial_path(self, desktop: str) -> Path:
        return self._settings.serials / desktop

    async def _call(self, function: Callable[..., T], *arguments: Any, limit: float = LIBVIRT_CALL_LIMIT) -> T:
        """Run in the pool. A call that outlives ``limit`` keeps its thread until libvirt returns."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *arguments))
        try:
            async with timeout(limit):
                return await future
        except TimeoutError:
            raise HypervisorError(f"libvirt gave no answer within {limit:.0f} seconds.") from None


_idle: dict[str, list[libvirt.virConnect]] = {}
"""Embedded connections that nobody uses: libvirt registers that driver with each `open`, 20 times at most."""


def _open(uri: str) -> libvirt.virConnect:
    idle = _idle.get(uri)
    return idle.pop() if idle else libvirt.open(uri)


def _close(connection: libvirt.virConnect, uri: str) -> None:
    if uri.startswith("qemu:///embed"):
        _idle.setdefault(uri, []).append(connection)
    else:
        connection.close()


@functools.cache
def _start_event_loop() -> None:
    """Once per process, before any connection: https://libvirt.org/html/libvirt-libvirt-event.html"""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print every error
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


def _screenshot(connection: libvirt.virConnect, dom: libvirt.virDomain) -> bytes:
    stream = connection.newStream(0)
    picture = io.BytesIO()
    try:
        mime = dom.screenshot(stream, 0, 0)
        stream.recvAll(lambda _stream, data, _nothing: picture.write(data) and 0, None)
        stream.finish()
    except libvirt.libvirtError:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
    if mime == "image/png":
        return picture.getvalue()
    converted = io.BytesIO()
    Image.open(picture).save(converted, "PNG")
    return converted.getvalue()


def _said(error: libvirt.libvirtError) -> str:
    return (error.get_error_message() or str(error)).strip().rstrip(".")


def _lost(error: libvirt.libvirtError, what: str) -> HypervisorError:
    if error.get_error_code() in _GONE:
        return NoSuchDomain("This desktop does not run on this host.")
    return HypervisorError(f"The guest {what}: {_said(error)}.")


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


def _free_mib(folder: Path) -> int:
    return shutil.disk_usage(folder).free // 2**20
