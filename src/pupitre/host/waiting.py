"""Guests that wait for their disk, let go on once there is space again."""

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from pupitre.errors import HypervisorError
from pupitre.host.hypervisor.overlays import Disks
from pupitre.host.hypervisor.port import Hypervisor
from pupitre.timings import FULL_DISK_RETRY

log = structlog.get_logger(__name__)

ENOUGH_MIB = 64
"""With less space, whoever goes on waits again at once."""


class Waiting:
    """``waiting`` names the desktops that wait now."""

    def __init__(self, hypervisor: Hypervisor, disks: Disks, waiting: Callable[[], Iterable[str]]) -> None:
        self._hypervisor = hypervisor
        self._disks = disks
        self._waiting = waiting
        self._due: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """No event tells of space that is there again: try, for each less often the longer it waits."""
        while True:
            await asyncio.sleep(FULL_DISK_RETRY.first)
            await self.look(time.monotonic())

    async def look(self, now: float) -> None:
        """Let go on whoever is due to be tried."""
        waiting = set(self._waiting())
        if not waiting or self._disks.free_mib() < ENOUGH_MIB:
            return
        # One that went on and waits again within a minute is not tried as if it were the first time.
        self._due = {
            id: due for id, due in self._due.items() if id in waiting or now - due[0] < FULL_DISK_RETRY.longest
        }
        for desktop in waiting:
            at, pause = self._due.get(desktop, (now, FULL_DISK_RETRY.first))
            if now < at:
                continue
            self._due[desktop] = (now + pause, min(2 * pause, FULL_DISK_RETRY.longest))
            try:
                await self._hypervisor.resume(desktop)
            except HypervisorError as error:
                log.warning("guest_not_resumed", desktop=desktop, reason=str(error))
