"""The host agent: makes of each desktop what the cluster wants, and reports what it sees.

Level-triggered: an order changes a record, and one worker for each desktop closes
the gap between the record and the machine. What has changed is reported until the
cluster has taken it; steps that follow each other quickly are reported as one.
"""

import asyncio
import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import structlog

from pupitre.config import Settings
from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import DiskFormat, Firmware, ImageSpec
from pupitre.domain.warning import HostWarning
from pupitre.errors import (
    HypervisorError,
    ImageFault,
    MessageError,
    NoSuchDomain,
    NotFound,
    PupitreError,
    Unavailable,
)
from pupitre.host.console.tickets import ConsoleServer
from pupitre.host.hypervisor.domain_xml import EFI
from pupitre.host.hypervisor.overlays import Disks
from pupitre.host.hypervisor.port import DISK_FULL, Guest, GuestState, Hypervisor, SeenGuest
from pupitre.host.journal import Journal, Record
from pupitre.host.orphan_scan import OrphanScan
from pupitre.host.reports import Reporter
from pupitre.host.shutdown import HostShutdown, PoweredOff, after
from pupitre.host.waiting import Waiting
from pupitre.images.store import ImageStore, images_notifier
from pupitre.runtime.clock import now_ms
from pupitre.runtime.notifier import Listener
from pupitre.runtime.timeouts import timeout
from pupitre.runtime.workers import Workers
from pupitre.timings import ACPI_RETRY, HOST_RETRY
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import (
    AnyMessage,
    Describe,
    Done,
    EnsureDesktop,
    EnsureGone,
    PowerOff,
    Refused,
    RevokeSessions,
)
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)


_SETTLED = frozenset({DesktopState.RUNNING, DesktopState.FAILED})


class HostAgent:
    """`start`, then `run` until cancelled or powered off, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        disks: Disks,
        images: ImageStore,
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._subjects = Subjects(settings.cluster)
        self._hypervisor = hypervisor
        self._disks = disks
        self._images = images
        self._journal = journal
        self._workers = Workers(self._settle)
        self._start_slots = asyncio.Semaphore(settings.start_limit)
        self._starting: set[str] = set()
        self._ended_early: dict[str, SeenGuest] = {}
        self._reporter = Reporter(settings, hypervisor, disks, images, journal)
        self._waiting = Waiting(hypervisor, disks, self._paused)
        self._orphan_scan = OrphanScan(hypervisor, disks, journal, put=self._put, found=self._reporter.found)
        self._host_shutdown = HostShutdown(
            hypervisor, journal, self._reporter, take_away=self._take_away, grace=settings.shutdown_grace
        )
        self._console: ConsoleServer
        self._broker: BrokerConnection

    async def start(self, broker: BrokerConnection, console: ConsoleServer) -> None:
        """Find what is there, and begin to take orders. Hypervisor, broker and console are open."""
        self._broker = broker
        self._console = console
        self._reporter.open(broker, console)
        await self._orphan_scan.recover()
        await broker.serve(self._subjects.orders(self._settings.host_name), self._on_order)
        await broker.serve(self._subjects.all_hosts, self._on_call)
        for desktop in self._journal.records:
            self._workers.wake(desktop)

    async def run(self) -> bool:
        """Serve until cancelled, or until the machine may be shut down: then True."""
        powered_off = False
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._reporter.run())
                tasks.create_task(self._watch_guests())
                tasks.create_task(self._watch_images())
                tasks.create_task(self._orphan_scan.run())
                tasks.create_task(self._host_shutdown.run())
                tasks.create_task(self._waiting.run())
        except* PoweredOff:
            powered_off = True
        return powered_off

    async def stop(self) -> None:
        """Leave the guests, or take them with us and say so, as the setting wants it."""
        if self._settings.guests_on_stop == "destroy" and not self._host_shutdown.is_on:
            await self._host_shutdown.remove_all_guests()
        await self._workers.close()

    def report_all(self) -> None:
        """Tell the cluster everything: after the broker was away."""
        self._reporter.everything()

    def warn(self, source: str, *warnings: HostWarning) -> None:
        """Set the warnings of ``source`` about this host, see `Reporter.warn`."""
        self._reporter.warn(source, *warnings)

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
        if not isinstance(message, Describe | EnsureDesktop | EnsureGone | RevokeSessions | PowerOff):
            raise MessageError(f"A host takes no {type(message).__name__}.")
        position = (message.sequence, message.proof) if isinstance(message, EnsureDesktop | EnsureGone) else ()
        if not await self._journal.raise_epoch(message.epoch, *position):
            return Refused(code="old_epoch", reason=f"Epoch {message.epoch} is over; {self._journal.epoch} has begun.")
        if isinstance(message, Describe):
            return await self._reporter.full()
        if isinstance(message, RevokeSessions):
            self._console.sessions.revoke(message.bearers)
            return Done()
        if isinstance(message, PowerOff):
            if not self._reporter.is_meant(message.run):
                return Refused(code="old_run", reason="The order was for an earlier process of this host.")
            return await self._host_shutdown.order(message)
        if isinstance(message, EnsureGone):
            await self._take_away(message.desktop, after(message.grace))
        elif self._host_shutdown.is_on:
            return Refused(code="shutting_down", reason="This host is about to shut down.")
        else:
            await self._take(message)
            self._workers.wake(message.desktop)
        return Done()

    async def _on_call(self, message: AnyMessage) -> None:
        """Handle a message of the cluster to all hosts at once."""
        if not isinstance(message, Describe):
            raise MessageError(f"All hosts together take no {type(message).__name__}.")
        if await self._journal.raise_epoch(message.epoch):
            self.report_all()

    async def _take(self, order: EnsureDesktop) -> None:
        async with self._journal.turn(order.desktop):
            held = self._journal.records.get(order.desktop)
            if held and held.boot >= order.boot:
                self._show(held)  # taken before; the cluster may have missed how it is
                return
            record = Record(
                order.desktop,
                order.boot,
                DesktopState.RUNNING,
                DesktopState.REQUESTED,
                order.spec,
                owner=order.owner,
                proof=order.proof,
            )
            await self._journal.put(record)
        log.info("desktop_ordered", desktop=order.desktop, image=order.spec.id)

    async def _take_away(self, desktop: str, end_by: int = 0, reason: str | None = None) -> None:
        """Want it gone: at ``end_by`` (Unix ms) at the latest if it runs, at once if it does not."""
        async with self._journal.turn(desktop):
            held = self._journal.records.get(desktop) or Record(desktop, 0, DesktopState.GONE, DesktopState.STOPPING)
            await self._want_gone(held, reason or held.reason, end_by)
        if desktop in self._starting:
            self._broker.spawn(self._interrupt(desktop))
        self._workers.wake(desktop)

    async def _want_gone(self, held: Record, reason: str | None, end_by: int = 0) -> None:
        """Record that the desktop shall be gone. Called in the desktop's turn."""
        if held.wanted is not DesktopState.GONE:
            end_by = end_by if held.state is DesktopState.RUNNING else 0
        elif held.desktop in self._journal.records and held.end_by <= end_by:
            return  # a repeat never gives it more time
        gone = replace(held, wanted=DesktopState.GONE, state=DesktopState.STOPPING, reason=reason, end_by=end_by)
        await self._journal.put(gone)

    async def _interrupt(self, desktop: str) -> None:
        """End a guest that is still starting, so that its worker comes back to remove it."""
        log.info("start_interrupted", desktop=desktop)
        await self._hypervisor.ensure_gone(desktop)

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
            log.warning("desktop_start_failed", desktop=desktop, reason=str(error))
            await self._put_if_still(record, record.seen(DesktopState.FAILED, str(error)))
        return None

    async def _start(self, record: Record, spec: ImageSpec) -> None:
        self._note(record.seen(DesktopState.PREPARING))
        if spec.firmware is Firmware.EFI and not EFI.exists():
            raise ImageFault("The image boots by EFI, and this host has no EFI firmware: sudo apt-get install ovmf")
        base = self._images.blob(spec.disk)
        is_cd = spec.disk_format is DiskFormat.ISO
        backing = None if is_cd else base
        disk = await self._disks.ensure(record.desktop, backing, spec.disk_format, spec.disk_gib)
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
            if await self._put_if_still(record, record.seen(DesktopState.RUNNING)):
                log.info("desktop_running", desktop=record.desktop)
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
        if record.end_by and (wait := await self._shut_down(record)):
            return wait
        try:
            await self._hypervisor.ensure_gone(record.desktop)
            await self._disks.ensure_gone(record.desktop)
            await self._console.disconnect(record.desktop)
        except (HypervisorError, OSError) as error:
            log.warning("desktop_not_removed_yet", desktop=record.desktop, reason=str(error))
            if self._still(record):
                self._note(record.seen(DesktopState.FAILED, str(error)))
            return 2.0
        if self._still(record):
            self._note(record.seen(DesktopState.GONE, record.reason))
            log.info("desktop_removed", desktop=record.desktop)
        return None

    async def _shut_down(self, record: Record) -> float:
        """Ask the guest to shut down; the seconds it still has, 0 when it runs no more."""
        left = (record.end_by - now_ms()) / 1000
        if left <= 0:
            return 0
        try:
            await self._hypervisor.shut_down(record.desktop)
        except NoSuchDomain:
            return 0
        except HypervisorError as error:
            log.warning("guest_shutdown_not_asked", desktop=record.desktop, reason=str(error))
        return min(left, ACPI_RETRY)

    # What happens by itself

    async def _watch_guests(self) -> None:
        async for seen in self._hypervisor.changes():
            while True:
                try:
                    await self._guest_changed(seen)
                    break
                except Unavailable as error:
                    log.warning("guest_end_not_written_yet", reason=str(error))
                    await asyncio.sleep(HOST_RETRY)

    def _paused(self) -> list[str]:
        """Desktops whose guests wait for their disk."""
        return [
            record.desktop
            for record in self._journal.records.values()
            if record.state is DesktopState.RUNNING and record.reason == DISK_FULL
        ]

    async def _guest_changed(self, seen: SeenGuest) -> None:
        async with self._journal.turn(seen.desktop):
            record = self._journal.records.get(seen.desktop)
            if record is None or record.boot != seen.boot:
                return
            if seen.state is GuestState.STOPPED and seen.desktop in self._starting:
                self._ended_early[seen.desktop] = seen
                return
            if record.wanted is DesktopState.GONE:
                if seen.state is GuestState.STOPPED and record.end_by:
                    self._workers.wake(seen.desktop)  # it has shut down as it was asked to
                return
            if record.state is not DesktopState.RUNNING:
                return
            if seen.state is GuestState.STOPPED:
                await self._guest_ended(record, seen)
            elif seen.state is GuestState.RUNNING and seen.reason != record.reason:
                await self._put(record.seen(DesktopState.RUNNING, seen.reason))
        if seen.state is GuestState.STOPPED:
            await self._console.disconnect(seen.desktop)

    async def _guest_ended(self, record: Record, seen: SeenGuest) -> None:
        log.info("guest_ended", desktop=seen.desktop, reason=seen.reason)
        if seen.orderly:
            await self._want_gone(record, "It was shut down from inside.")
            self._show(self._journal.records[seen.desktop])
            self._workers.wake(seen.desktop)
        else:
            await self._put(record.seen(DesktopState.FAILED, seen.reason))

    async def _watch_images(self) -> None:
        """Report images that someone built, imported or removed, builds that moved on, and files that notified nobody.

        No event tells of what another machine writes to a network share: for that the store is looked at.
        """
        # Under its own path: the store that desktops start from may be mounted read-only.
        async with contextlib.AsyncExitStack() as stack:
            listener: Listener | None = None
            try:
                listener = await stack.enter_async_context(images_notifier(self._settings.images_dir).listen())
            except OSError as error:
                log.warning("image_store_polled", error=str(error))
            self._reporter.copies()
            while True:
                try:
                    async with timeout(self._settings.image_look):
                        await (listener.wait() if listener else asyncio.Event().wait())
                    self._reporter.copies()
                except TimeoutError:
                    await self._reporter.look_at_copies()

    # Every change of a record is told

    async def _put(self, record: Record) -> None:
        await self._journal.put(record)
        self._show(record)

    async def _put_if_still(self, before: Record, after: Record) -> bool:
        """Put it unless something else is wanted of the desktop by now."""
        async with self._journal.turn(before.desktop):
            if not self._still(before):
                return False
            await self._put(after)
            return True

    def _note(self, record: Record) -> None:
        self._journal.note(record)
        self._show(record)

    def _show(self, record: Record) -> None:
        self._reporter.desktop(record)
        self._host_shutdown.moved.set()


def journal_path(settings: Settings) -> Path:
    return settings.host_dir / "journal.sqlite"
