"""The host agent: makes of each desktop what the cluster wants, and reports what it sees.

Level-triggered: an order changes a record, and one worker for each desktop closes
the gap between the record and the machine. What has changed is reported until the
cluster has taken it; steps that follow each other quickly are reported as one.
"""

import asyncio
import socket
from pathlib import Path

import structlog

from pupitre.config import Settings
from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import (
    HypervisorError,
    MessageError,
    NotFound,
    PupitreError,
    Unavailable,
)
from pupitre.host.console import ConsoleServer
from pupitre.host.hypervisor import Guest, GuestState, Hypervisor, SeenGuest
from pupitre.host.journal import Journal, Record
from pupitre.host.overlays import Overlays
from pupitre.host.reports import Reporter
from pupitre.images.store import ImageStore, bell
from pupitre.wire.link import Link
from pupitre.wire.messages import (
    AnyMessage,
    Describe,
    Done,
    EnsureDesktop,
    EnsureGone,
    Refused,
)
from pupitre.wire.subjects import Subjects
from pupitre.workers import Workers

log = structlog.get_logger(__name__)

FAREWELL = 20.0
"""Seconds that a host which stops with its guests takes to remove and report them."""

_SETTLED = frozenset({DesktopState.RUNNING, DesktopState.FAILED})


class HostAgent:
    """`start`, then `run` until cancelled, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        overlays: Overlays,
        images: ImageStore,
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._subjects = Subjects(settings.cluster)
        self._hypervisor = hypervisor
        self._overlays = overlays
        self._images = images
        self._journal = journal
        self._workers = Workers(self._settle)
        self._start_slots = asyncio.Semaphore(settings.start_limit)
        self._starting: set[str] = set()
        self._ended_early: dict[str, SeenGuest] = {}
        self._reporter = Reporter(settings, hypervisor, images, journal)
        self._console: ConsoleServer
        self._link: Link

    async def start(self, link: Link, console: ConsoleServer) -> None:
        """Find what is there, and begin to take orders. Hypervisor, link and console are open."""
        self._link = link
        self._console = console
        self._reporter.open(link, console)
        await self._recover()
        await link.serve(self._subjects.orders(self._settings.host_name), self._on_order)
        await link.serve(self._subjects.all_hosts, self._on_call)
        for desktop in self._journal.records:
            self._workers.wake(desktop)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reporter.run())
            tasks.create_task(self._watch_guests())
            tasks.create_task(self._watch_images())

    async def stop(self) -> None:
        """Leave the guests, or take them with us and say so, as the setting wants it."""
        if self._settings.guests_on_stop == "destroy":
            try:
                async with asyncio.timeout(FAREWELL):
                    await self._remove_all()
            except TimeoutError:
                log.error("Not everything is removed.", desktops=sorted(self._journal.records))
        await self._workers.close()

    def report_all(self) -> None:
        """Tell the cluster everything: after the link was away."""
        self._reporter.everything()

    # What the console server asks

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        """A socket connected to the desktop's VNC server. Raises `NotFound` unless it runs under ``boot``."""
        self._running(desktop, boot)
        return await self._hypervisor.console(desktop)

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        """The desktop's screen as PNG. Raises `NotFound` unless it runs under ``boot``."""
        self._running(desktop, boot)
        return await self._hypervisor.screenshot(desktop)

    def _running(self, desktop: str, boot: int) -> None:
        record = self._journal.records.get(desktop)
        if record is None or record.state is not DesktopState.RUNNING or record.boot != boot:
            raise NotFound("This desktop does not run here.")

    # Orders

    async def _on_order(self, message: AnyMessage) -> AnyMessage | None:
        if not isinstance(message, Describe | EnsureDesktop | EnsureGone):
            raise MessageError(f"A host takes no {type(message).__name__}.")
        if not self._journal.raise_epoch(message.epoch):
            return Refused(code="old_epoch", reason=f"Epoch {message.epoch} is over; {self._journal.epoch} has begun.")
        if isinstance(message, Describe):
            return await self._reporter.full()
        if isinstance(message, EnsureDesktop):
            self._take(message)
        else:
            record = self._journal.records.get(message.desktop) or Record(
                message.desktop, 0, DesktopState.GONE, DesktopState.STOPPING
            )
            self._want_gone(record, record.reason)
            if message.desktop in self._starting:
                self._link.spawn(self._interrupt(message.desktop))
        self._workers.wake(message.desktop)
        return Done()

    async def _on_call(self, message: AnyMessage) -> None:
        """What the cluster says to all hosts at once."""
        if not isinstance(message, Describe):
            raise MessageError(f"All hosts together take no {type(message).__name__}.")
        if self._journal.raise_epoch(message.epoch):
            self.report_all()

    async def _interrupt(self, desktop: str) -> None:
        """End a guest that is still starting, so that its worker comes back to remove it."""
        log.info("A start is interrupted.", desktop=desktop)
        await self._hypervisor.ensure_gone(desktop)

    def _take(self, order: EnsureDesktop) -> None:
        held = self._journal.records.get(order.desktop)
        if held and held.boot >= order.boot:
            self._show(held)  # taken before; the cluster may have missed how it is
            return
        record = Record(order.desktop, order.boot, DesktopState.RUNNING, DesktopState.REQUESTED, order.spec)
        self._journal.put(record)
        log.info("Desktop ordered.", desktop=order.desktop, image=order.spec.id)

    def _want_gone(self, record: Record, reason: str | None) -> None:
        if record.wanted is not DesktopState.GONE or record.desktop not in self._journal.records:
            gone = Record(record.desktop, record.boot, DesktopState.GONE, DesktopState.STOPPING, record.spec, reason)
            self._journal.put(gone)

    # The worker of one desktop

    async def _settle(self, desktop: str) -> float | None:
        record = self._journal.records.get(desktop)
        if record is None:
            return None
        if record.wanted is DesktopState.GONE:
            return await self._remove(record)
        if record.state in _SETTLED or record.spec is None:
            return None
        try:
            async with self._start_slots:
                if self._still(record):
                    await self._start(record, record.spec)
        except Unavailable:
            raise
        except PupitreError as error:
            log.warning("A desktop did not start.", desktop=desktop, reason=str(error))
            if self._still(record):
                self._put(record.seen(DesktopState.FAILED, str(error)))
        return None

    async def _start(self, record: Record, spec: ImageSpec) -> None:
        self._note(record.seen(DesktopState.PREPARING))
        base = self._images.blob(spec.disk)
        is_cd = spec.disk_format is DiskFormat.ISO
        backing = None if is_cd else base
        disk = await self._overlays.ensure(record.desktop, backing, spec.disk_format, spec.disk_gib)
        if not self._still(record):
            return
        guest = Guest(
            desktop=record.desktop,
            boot=record.boot,
            spec=spec,
            disk=disk,
            backing=backing,
            kernel=self._images.blob(spec.kernel) if spec.kernel else None,
            initrd=self._images.blob(spec.initrd) if spec.initrd else None,
            cdrom=base if is_cd else None,
        )
        self._note(record.seen(DesktopState.BOOTING))
        self._starting.add(record.desktop)
        try:
            await self._hypervisor.ensure_running(guest)
            if self._still(record):
                self._put(record.seen(DesktopState.RUNNING))
                log.info("Desktop runs.", desktop=record.desktop)
                self._starting.discard(record.desktop)
                if ended := self._ended_early.get(record.desktop):
                    await self._guest_changed(ended)
        finally:
            self._starting.discard(record.desktop)
            self._ended_early.pop(record.desktop, None)

    def _still(self, record: Record) -> bool:
        """Whether the desktop is still wanted as it was when the step began."""
        held = self._journal.records.get(record.desktop)
        return held is not None and (held.wanted, held.boot) == (record.wanted, record.boot)

    async def _remove(self, record: Record) -> float | None:
        if record.state is DesktopState.GONE:
            return None
        try:
            await self._hypervisor.ensure_gone(record.desktop)
            await self._overlays.ensure_gone(record.desktop)
            await self._console.disconnect(record.desktop)
        except (HypervisorError, OSError) as error:
            log.warning("A desktop is not removed yet.", desktop=record.desktop, reason=str(error))
            if self._still(record):
                self._note(record.seen(DesktopState.FAILED, str(error)))
            return 2.0
        if self._still(record):
            self._note(record.seen(DesktopState.GONE, record.reason))
            log.info("Desktop removed.", desktop=record.desktop)
        return None

    # What happens by itself

    async def _recover(self) -> None:
        """Compare the journal with what runs: guests go on when their host process dies."""
        guests = await self._hypervisor.guests()
        for record in list(self._journal.records.values()):
            guest = guests.get(record.desktop)
            runs = guest is not None and guest.state is not GuestState.STOPPED and guest.boot == record.boot
            if record.wanted is DesktopState.RUNNING and record.state is DesktopState.RUNNING and not runs:
                self._journal.put(record.seen(DesktopState.FAILED, "The desktop ended while its host agent was away."))
        for guest in guests.values():
            if guest.desktop not in self._journal.records:
                log.warning("There is a guest without a record.", desktop=guest.desktop)
                state = DesktopState.FAILED if guest.state is GuestState.STOPPED else DesktopState.RUNNING
                self._journal.put(Record(guest.desktop, guest.boot, DesktopState.RUNNING, state, reason=guest.reason))
        for desktop in self._overlays.all() - self._journal.records.keys():
            log.warning("An overlay without a desktop is removed.", desktop=desktop)
            await self._overlays.ensure_gone(desktop)
        if self._journal.records:
            log.info("Desktops found again.", count=len(self._journal.records))

    async def _watch_guests(self) -> None:
        async for seen in self._hypervisor.changes():
            while True:
                try:
                    await self._guest_changed(seen)
                    break
                except Unavailable as error:
                    log.warning("What became of a guest is not written down yet.", reason=str(error))
                    await asyncio.sleep(1)

    async def _guest_changed(self, seen: SeenGuest) -> None:
        record = self._journal.records.get(seen.desktop)
        if record is None or record.boot != seen.boot or record.wanted is DesktopState.GONE:
            return
        if seen.state is GuestState.RUNNING and record.state is DesktopState.RUNNING:
            if seen.reason != record.reason:
                self._put(record.seen(DesktopState.RUNNING, seen.reason))
        elif seen.state is GuestState.STOPPED and seen.desktop in self._starting:
            self._ended_early[seen.desktop] = seen
        elif seen.state is GuestState.STOPPED and record.state is DesktopState.RUNNING:
            log.info("A guest ended.", desktop=seen.desktop, reason=seen.reason)
            if seen.orderly:
                self._want_gone(record, "It was shut down from inside.")
                self._show(self._journal.records[seen.desktop])
                self._workers.wake(seen.desktop)
            else:
                self._put(record.seen(DesktopState.FAILED, seen.reason))
            await self._console.disconnect(seen.desktop)

    async def _watch_images(self) -> None:
        """Someone built, imported or removed an image, or a build moved on."""
        # Under its own path: the store that desktops start from may be mounted read-only.
        async with bell(self._settings.images_dir).listen() as listener:
            while True:
                self._reporter.copies()
                await listener.heard()

    # Every change of a record is told

    def _put(self, record: Record) -> None:
        self._journal.put(record)
        self._show(record)

    def _note(self, record: Record) -> None:
        self._journal.note(record)
        self._show(record)

    def _show(self, record: Record) -> None:
        self._reporter.desktop(record)

    async def _remove_all(self) -> None:
        for desktop in await self._hypervisor.guests():
            if desktop not in self._journal.records:
                self._journal.put(Record(desktop, 0, DesktopState.GONE, DesktopState.STOPPING))
        for record in list(self._journal.records.values()):
            self._want_gone(record, record.reason or "Pupitre was stopped.")
            self._workers.wake(record.desktop)
        while any(record.state is not DesktopState.GONE for record in self._journal.records.values()):
            self._reporter.due.clear()
            await self._reporter.due.wait()
        for _ in range(3):
            if await self._reporter.send():
                return


def journal_path(settings: Settings) -> Path:
    return settings.host_dir / "journal.sqlite"
