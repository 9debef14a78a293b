"""Reports of the host to the cluster: changes until they are taken, everything when it is asked.

Reports are numbered within one life of the process, in the order in which their
content was taken, so that a later number is always the later word.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterable
from dataclasses import replace

import structlog

from pupitre.config import Settings
from pupitre.domain.capacity import shortages
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostFacts
from pupitre.domain.report import CopyReport, DesktopReport, HostFinding, LastKnownPosition
from pupitre.domain.signed_manifest import SignedManifest
from pupitre.domain.warning import MOST_WARNINGS, HostWarning
from pupitre.errors import HypervisorError, MessageError, NoAnswer, PupitreError, SetupError, Unavailable
from pupitre.host.console.tickets import ConsoleServer
from pupitre.host.hypervisor.overlays import Disks
from pupitre.host.hypervisor.port import Hypervisor
from pupitre.host.journal import Journal, Record
from pupitre.images.signatures import read_signed
from pupitre.images.store import ImageStore
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import retry_loop
from pupitre.timings import GATHER_STEPS, RESEND
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Done, Heartbeat, HostShutdownNotice, Report
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)

_ON_THE_WAY = frozenset({DesktopState.REQUESTED, DesktopState.PREPARING, DesktopState.BOOTING, DesktopState.STOPPING})
MOST_FINDINGS = 100
"""Findings that wait for the cluster; of more, the oldest go."""


Held = tuple[tuple[CopyReport, ...], tuple[SignedManifest, ...]]
"""The images of this host, and their manifests as they were signed."""


class Reporter:
    """`open` once, then `run`. ``due`` is set whenever there is something to tell."""

    def __init__(
        self, settings: Settings, hypervisor: Hypervisor, disks: Disks, images: ImageStore, journal: Journal
    ) -> None:
        self._settings = settings
        self._growth = disks.growth_mib
        self._name = settings.host_name
        self._subjects = Subjects(settings.cluster)
        self._hypervisor = hypervisor
        self._images = images
        self._journal = journal
        self._run = uuid.uuid4().hex
        self._number = 0
        self._dirty: set[str] = set()
        self._found: tuple[HostFinding, ...] = ()
        self._copies_dirty = False
        self._told_copies: Held | None = None
        self._facts_dirty = False
        self._told: HostFacts | None = None
        self._warnings: dict[str, tuple[HostWarning, ...]] = {}
        self._warnings_dirty = False
        self._shown_manifests: set[str] = set()
        self._full_due = True
        self._soon: asyncio.TimerHandle | None = None
        self.due = asyncio.Event()
        self._console: ConsoleServer
        self._broker: BrokerConnection

    def open(self, broker: BrokerConnection, console: ConsoleServer) -> None:
        self._broker = broker
        self._console = console

    def is_meant(self, run: str) -> bool:
        """Whether an order for this run of the host is for this process."""
        return run in {"", self._run}

    async def run(self) -> None:
        """Report and beat until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(retry_loop(self.send, self.due, pauses=RESEND))
            tasks.create_task(self._beat())

    def desktop(self, record: Record) -> None:
        """This desktop has changed."""
        self._dirty.add(record.desktop)
        if record.state not in _ON_THE_WAY:
            self.due.set()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(GATHER_STEPS, self._set_due)

    def _set_due(self) -> None:
        self._soon = None
        self.due.set()

    def copies(self) -> None:
        """The images of this host have changed."""
        self._copies_dirty = True
        self.due.set()

    async def look_at_copies(self) -> None:
        """Look for changes of the images that notified nobody: files that came by rsync, or over a network share."""
        if await asyncio.to_thread(self._image_copies) != self._told_copies:
            self.copies()

    def found(self, finding: HostFinding) -> None:
        """Something was settled here that nobody asked for."""
        self._found = (*self._found, finding)[-MOST_FINDINGS:]
        self.due.set()

    def warn(self, source: str, *warnings: HostWarning) -> None:
        """Set the warnings of ``source`` about this host in place of those before; each code is `by_host`."""
        if self._warnings.get(source, ()) != warnings:
            self._warnings[source] = warnings
            self._warnings_dirty = True
            self.due.set()

    def everything(self) -> None:
        """The cluster may have missed anything."""
        self._full_due = True
        self.due.set()

    async def send(self) -> bool:
        """Send what has changed; False when it must be sent again. A desktop told to be gone is forgotten."""
        full, copies, facts, dirty = self._full_due, self._copies_dirty, self._facts_dirty, frozenset(self._dirty)
        warned = self._warnings_dirty
        if not (full or copies or facts or warned or dirty or self._found):
            return True
        self._full_due = self._copies_dirty = self._facts_dirty = self._warnings_dirty = False
        self._dirty -= dirty
        try:
            report = await self.full() if full else await self._changes(dirty, copies=copies, facts=facts)
            epoch = self._journal.epoch
            done = await self._broker.request(self._subjects.reports(self._name), report, Done)
            if report.heard and done.kept:
                self._journal.told(epoch)
        except (PupitreError, OSError) as error:
            level = logging.DEBUG if isinstance(error, NoAnswer) else logging.WARNING
            log.log(level, "A report was not taken.", reason=str(error))
            self._full_due |= full
            self._copies_dirty |= copies
            self._shown_manifests.clear()  # they may not have come
            self._facts_dirty |= facts
            self._warnings_dirty |= warned
            self._dirty |= dirty
            return False
        self._found = tuple(finding for finding in self._found if finding not in report.findings)
        gone = {
            desktop_report.desktop for desktop_report in report.desktops if desktop_report.state is DesktopState.GONE
        }
        try:
            await asyncio.gather(*(self._forget(desktop) for desktop in gone))
        except Unavailable:
            self._dirty |= gone
            raise
        return True

    async def _forget(self, desktop: str) -> None:
        async with self._journal.turn(desktop):
            held = self._journal.records.get(desktop)
            if held and held.state is DesktopState.GONE:
                await self._journal.drop(desktop)

    async def announce_shutdown(self) -> bool:
        """Tell the cluster that nothing is left here and this machine shuts down; False when it is to be told again."""
        if not await self.send():
            return False
        try:
            await self._broker.request(
                self._subjects.reports(self._name), HostShutdownNotice(host=self._name, run=self._run), Done
            )
        except (NoAnswer, MessageError) as error:
            log.debug("shutdown_notice_not_taken", reason=str(error))
            return False
        return True

    async def full(self) -> Report:
        """All this host knows."""
        records = self._journal.records.values()
        desktop_reports = [_full_desktop_report(record) for record in records]
        return await self._make(desktop_reports, full=True, copies=True, facts=True)

    async def _changes(self, dirty: frozenset[str], *, copies: bool, facts: bool) -> Report:
        records = self._journal.records
        desktop_reports = [_desktop_report(records[desktop]) for desktop in dirty if desktop in records]
        return await self._make(desktop_reports, full=False, copies=copies, facts=facts)

    async def _make(self, desktop_reports: list[DesktopReport], *, full: bool, copies: bool, facts: bool) -> Report:
        # Taken together with the sightings, before anything is awaited: a later report has a higher number.
        self._number += 1
        number = self._number
        positions = self._journal.positions
        heard = None
        if positions.before_epoch and not positions.told:
            heard = LastKnownPosition(positions.before_epoch, positions.before_sequence, positions.before_proof)
        found = await asyncio.to_thread(self._image_copies) if copies else None
        self._told_copies = self._told_copies if found is None else found
        if facts:
            self._told = await self._hypervisor.facts()
        return Report(
            host=self._name,
            run=self._run,
            number=number,
            full=full,
            port=self._console.port,
            viewer_port=self._console.viewer_port,
            facts=self._told if facts else None,
            desktops=tuple(desktop_reports),
            copies=found[0] if found else None,
            manifests=self._unshown(found[1], full=full) if found else (),
            findings=self._found,
            heard=heard,
            warnings=tuple(one for said in self._warnings.values() for one in said)[:MOST_WARNINGS],
        )

    def _image_copies(self) -> Held:
        """A store that cannot be used has no images; what else this host knows is reported all the same."""
        try:
            found = self._images.copies()
        except SetupError as error:
            log.warning("image_store_unusable", reason=str(error))
            found = []
        signed = {copy.image.id: read_signed(self._images.root, copy.image.id) for copy in found}
        return tuple(
            CopyReport(copy.image, copy.spec, one.digest if (one := signed[copy.image.id]) else "") for copy in found
        ), tuple(one for one in signed.values() if one)

    def _unshown(self, manifests: Iterable[SignedManifest], *, full: bool) -> tuple[SignedManifest, ...]:
        """Those that the cluster has not been shown since the last full report."""
        if full:
            self._shown_manifests.clear()
        new = {one.digest: one for one in manifests if one.digest not in self._shown_manifests}
        self._shown_manifests |= new.keys()
        return tuple(new.values())

    async def _beat(self) -> None:
        while True:
            beat = Heartbeat(host=self._name, run=self._run, number=self._number, at=now_ms())
            await self._broker.publish(self._subjects.heartbeats(self._name), beat)
            await self._look_at_facts()
            await asyncio.sleep(self._settings.heartbeat)

    async def _look_at_facts(self) -> None:
        """No event tells of a disk that fills or is freed, and placement goes by what was told last."""
        try:
            facts = await self._hypervisor.facts()
        except HypervisorError as error:
            log.warning("host_facts_unknown", reason=str(error))
            return
        self.warn("capacity", *shortages(facts, await asyncio.to_thread(self._growth)))
        if self._told is not None and _differs(self._told, facts):
            self._facts_dirty = True
            self.due.set()


def _differs(told: HostFacts, seen: HostFacts) -> bool:
    """Whether it matters to placement: a little disk or memory more or less does not."""
    for before, now in (
        (told.disk_free_mib, seen.disk_free_mib),
        (told.guests_mib, seen.guests_mib),
        (told.over_books_mib, seen.over_books_mib),
    ):
        if abs(before - now) > max(64, before // 50):
            return True
    same = replace(
        told, disk_free_mib=seen.disk_free_mib, guests_mib=seen.guests_mib, over_books_mib=seen.over_books_mib
    )
    return same != seen


def _desktop_report(record: Record) -> DesktopReport:
    return DesktopReport(record.desktop, record.boot, record.state, record.reason)


def _full_desktop_report(record: Record) -> DesktopReport:
    spec = record.spec
    return DesktopReport(
        record.desktop,
        record.boot,
        record.state,
        record.reason,
        owner=record.owner,
        image=spec.id if spec else "",
        memory_mib=spec.memory_mib if spec else 0,
        vcpus=spec.vcpus if spec else 0,
        proof=record.proof,
    )
