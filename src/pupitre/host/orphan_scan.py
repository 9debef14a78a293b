"""Orphan scan: it looks for guests and disks without a desktop, and for desktops without a guest, while all runs.

The journal says which desktops this host has; the hypervisor and the overlays' folder say what
there is. A record is made before its guest and its overlay and is dropped after them, so
one without a record before and after a look is an orphan and no desktop on its way.

A guest without a record gets one, and so the cluster hears of it, which alone knows whether it
is wanted. An overlay without either is removed, and reported. A desktop whose guest has
vanished has failed; as the hypervisor's own word on it may be on its way, it must be missed twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
import uuid_utils

from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostAct
from pupitre.domain.report import HostFinding
from pupitre.errors import PupitreError
from pupitre.host.hypervisor.overlays import Disks
from pupitre.host.hypervisor.port import GuestState, Hypervisor, SeenGuest
from pupitre.host.journal import Journal, Record
from pupitre.runtime.clock import now_ms
from pupitre.timings import ORPHAN_SCAN

log = structlog.get_logger(__name__)

AWAY = "The desktop ended while its host agent was away."
VANISHED = "The desktop's guest vanished from its host."


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Result of one look. ``missing`` are records of desktops that run and have no guest."""

    guests: tuple[SeenGuest, ...]
    overlays: frozenset[str]
    missing: tuple[Record, ...]


def compare(
    before: Mapping[str, Record], after: Mapping[str, Record], guests: Mapping[str, SeenGuest], overlays: set[str]
) -> ScanResult:
    """``before`` and ``after`` are the records on both sides of the look at ``guests`` and ``overlays``."""
    known = before.keys() | after.keys()
    return ScanResult(
        guests=tuple(guest for desktop, guest in guests.items() if desktop not in known),
        overlays=frozenset(overlays - known - guests.keys()),
        missing=tuple(
            record
            for desktop, record in after.items()
            if before.get(desktop) == record
            and record.wanted is DesktopState.RUNNING
            and record.state is DesktopState.RUNNING
            and not _runs(guests.get(desktop), record)
        ),
    )


def _runs(guest: SeenGuest | None, record: Record) -> bool:
    return guest is not None and guest.state is not GuestState.STOPPED and guest.boot == record.boot


class OrphanScan:
    """``put`` keeps a record and has it reported; ``found`` has a finding reported."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        disks: Disks,
        journal: Journal,
        *,
        put: Callable[[Record], Awaitable[None]],
        found: Callable[[HostFinding], None],
        every: float = ORPHAN_SCAN,
    ) -> None:
        self._hypervisor = hypervisor
        self._disks = disks
        self._journal = journal
        self._put = put
        self._found = found
        self._every = every
        self._missed: frozenset[Record] = frozenset()

    async def run(self) -> None:
        """Look at intervals until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.look()
            except (PupitreError, OSError) as error:
                log.warning("orphan_scan_failed", reason=str(error))

    async def recover(self) -> None:
        """The first look, before any order is taken: guests go on when their host process dies."""
        orphans = await self._compare()
        for record in orphans.missing:
            await self._fail(record, AWAY)
        await self._settle(orphans)
        if self._journal.records:
            log.info("desktops_recovered", count=len(self._journal.records))

    async def look(self) -> None:
        """Find strays and settle them."""
        orphans = await self._compare()
        for record in orphans.missing:
            if record in self._missed:
                await self._fail(record, VANISHED)
        self._missed = frozenset(orphans.missing)
        await self._settle(orphans)

    async def _compare(self) -> ScanResult:
        before = dict(self._journal.records)
        guests = await self._hypervisor.guests()
        overlays = await asyncio.to_thread(self._disks.all)
        return compare(before, self._journal.records, guests, overlays)

    async def _fail(self, record: Record, reason: str) -> None:
        async with self._journal.turn(record.desktop):
            if self._journal.records.get(record.desktop) == record:
                log.warning("guest_missing", desktop=record.desktop)
                await self._put(record.seen(DesktopState.FAILED, reason))

    async def _settle(self, orphans: ScanResult) -> None:
        for guest in orphans.guests:
            async with self._journal.turn(guest.desktop):
                if guest.desktop in self._journal.records:
                    continue
                log.warning("guest_without_record", desktop=guest.desktop)
                state = DesktopState.FAILED if guest.state is GuestState.STOPPED else DesktopState.RUNNING
                await self._put(Record(guest.desktop, guest.boot, DesktopState.RUNNING, state, reason=guest.reason))
        for desktop in sorted(orphans.overlays):
            async with self._journal.turn(desktop):
                if desktop in self._journal.records:
                    continue
                log.warning("orphan_overlay_removed", desktop=desktop)
                await self._disks.ensure_gone(desktop)
            removed = HostFinding(
                id=str(uuid_utils.uuid7()), at=now_ms(), action=HostAct.OVERLAY_REMOVED, desktop=desktop[:64],
                detail="A disk that belonged to no desktop and no guest was removed.",
            )  # fmt: skip
            self._found(removed)
