"""The port to whatever runs guests: libvirt in earnest, memory for tests and load.

What holds for every implementation (``tests/unit/host/test_hypervisor_contract.py``):

- ``ensure_*`` may be repeated, by the same process or by the next one.
- A guest is a desktop and its boot generation; both can be read back from the
  guest itself, so a host process that was killed finds its guests again.
- Guests outlive the host process. ``close`` leaves them alone.
- An order for an older boot generation than the one running is refused.
- Every failure is a `HypervisorError` in one sentence, and leaves nothing running.
"""

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pupitre.domain.host import HostFacts
from pupitre.domain.image import ImageSpec

DISK_FULL = "Paused: the disk of its host is full or cannot be written. It goes on by itself once there is space."
"""What keeps a guest waiting."""


class GuestState(StrEnum):
    """State of a guest as the hypervisor sees it now."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest as it is wanted.

    ``disk`` is the desktop's own qcow2 overlay, ``backing`` the image below it
    (None when the overlay stands alone). ``cdrom`` is an ISO to boot when the
    disk does not. ``kernel`` and ``initrd`` are files of this host.
    """

    desktop: str
    boot: int
    spec: ImageSpec
    disk: Path
    backing: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    cdrom: Path | None = None


@dataclass(frozen=True, slots=True)
class SeenGuest:
    """A guest as it is. ``reason`` says why it stopped, or what keeps it waiting.

    ``orderly`` says that it shut itself down, as its user asked it to.
    """

    desktop: str
    boot: int
    state: GuestState
    reason: str | None = None
    orderly: bool = False


class Hypervisor(Protocol):
    """Runs guests. Create, ``open`` once, use from one event loop, ``close``."""

    async def open(self) -> None:
        """Connect, and warm what the first start would otherwise wait for. Raises `SetupError`, `HypervisorError`."""

    async def close(self) -> None:
        """Let go. Guests go on."""

    async def facts(self) -> HostFacts:
        """Facts about what this host has to give."""

    async def ensure_running(self, guest: Guest) -> None:
        """Return when the guest runs. Raises `HypervisorError`, and then it does not."""

    async def ensure_gone(self, desktop: str) -> None:
        """Return when no guest of this desktop runs. The overlay is not touched."""

    async def resume(self, desktop: str) -> None:
        """Let a guest go on that waits for its disk; one that runs is left alone. Raises `HypervisorError`."""

    async def shut_down(self, desktop: str) -> None:
        """Press the power button (ACPI) and return at once; the end, if it comes, is an orderly change.

        May be repeated. Raises `NoSuchDomain` when the guest does not run.
        """

    async def guests(self) -> dict[str, SeenGuest]:
        """Every guest of ours that there is, by desktop, those of earlier processes too."""

    def changes(self) -> AsyncIterator[SeenGuest]:
        """Starts and stops as they happen, since ``open``, in order. One reader; ends at ``close``."""

    async def console(self, desktop: str) -> socket.socket:
        """A connected, non-blocking stream socket that speaks RFB. Raises `NoSuchDomain`."""

    async def screenshot(self, desktop: str) -> bytes:
        """The guest's screen as a PNG. Raises `NoSuchDomain`."""

    async def serial(self, desktop: str) -> Path:
        """The unix socket of the guest's serial line. Raises `NoSuchDomain`."""
