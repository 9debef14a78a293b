"""The desktops' own disks: one qcow2 overlay per desktop, on top of its image.

What stays true: an overlay is either whole or not there (made under another name,
then renamed); formats are always given, never guessed; the image below is only read.
A disk is found by its desktop's id alone, so whoever cleans up needs no other record.
"""

import asyncio
import contextlib
import os
import subprocess
import uuid
from pathlib import Path
from typing import Protocol

from pupitre.errors import ImageFault
from pupitre.host.diagnosis import LEAST_FREE_MIB, is_qcow2
from pupitre.host.hypervisor.domain_xml import desktop_id, is_desktop_id
from pupitre.timings import QEMU_IMG_LIMIT

SUFFIX = ".qcow2"
_SIZE_AT = 24
"""Where a qcow2 header has the virtual size: 8 bytes, big-endian."""


class Disks(Protocol):
    """Desktops' own disks. `Overlays` in earnest; `NoDisks` beside a hypervisor that has no guests."""

    async def ensure(self, desktop: str, backing: Path | None, backing_format: str | None, size_gib: int) -> Path:
        """Path of the desktop's disk. Raises `ImageFault`."""

    async def ensure_gone(self, desktop: str) -> None: ...

    def all(self) -> set[str]:
        """The desktops that have a disk here."""

    def growth_mib(self) -> int:
        """MiB by which all of them together may still grow."""

    def free_mib(self) -> int:
        """Free MiB where they are."""


class NoDisks:
    """Names without files: what is simulated reads no disk. They are lost with the process, as its guests are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._there: set[str] = set()

    async def ensure(self, desktop: str, _backing: Path | None, _format: str | None, _size_gib: int) -> Path:
        self._there.add(desktop_id(desktop))
        return self._folder / f"{desktop}{SUFFIX}"

    async def ensure_gone(self, desktop: str) -> None:
        self._there.discard(desktop)

    def all(self) -> set[str]:
        return set(self._there)

    def growth_mib(self) -> int:
        return 0

    def free_mib(self) -> int:
        return 1 << 20


class Overlays:
    """``folder`` is one host's own; QEMU reaches the files through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Make the folder; sweep what a killed process left half-made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)  # QEMU, which may be another user, must pass but not list
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)

    def path(self, desktop: str) -> Path:
        return self.folder / f"{desktop_id(desktop)}{SUFFIX}"

    async def ensure(self, desktop: str, backing: Path | None, backing_format: str | None, size_gib: int) -> Path:
        """The overlay, made if it is not there. Raises `ImageFault`.

        It is as large as ``backing``, which knows its own partitions; without one
        (for an ISO) it is an empty disk of ``size_gib``.
        """
        path = self.path(desktop)
        if path.exists():
            if not path.is_symlink() and await asyncio.to_thread(is_qcow2, path):
                return path
            raise ImageFault("The desktop's disk is damaged. Stop the desktop and start a new one.")
        part = self.folder / f".{desktop}.{uuid.uuid4().hex}.part"
        try:
            await self._create(part, backing, backing_format, size_gib)
            part.chmod(0o600)  # libvirt gives it to QEMU's user for as long as the guest runs
            os.rename(part, path)
        except OSError as error:
            raise ImageFault(
                f"The desktop's disk cannot be made in {self.folder}: {error.strerror or error}."
            ) from error
        finally:
            part.unlink(missing_ok=True)
        return path

    async def ensure_gone(self, desktop: str) -> None:
        self.path(desktop).unlink(missing_ok=True)

    def all(self) -> set[str]:
        """The desktops that have a disk here."""
        names = {path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"[!.]*{SUFFIX}")}
        return {name for name in names if is_desktop_id(name)}  # what someone else put here is none of ours

    def growth_mib(self) -> int:
        """Virtual sizes less what is allocated, of all overlays."""
        growth = 0
        for path in self.folder.glob(f"[!.]*{SUFFIX}"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                header = file.read(_SIZE_AT + 8)
                size = int.from_bytes(header[_SIZE_AT:]) if len(header) == _SIZE_AT + 8 else 0
                growth += max(0, size - os.fstat(file.fileno()).st_blocks * 512)
        return growth >> 20

    def free_mib(self) -> int:
        free = os.statvfs(self.folder)
        return free.f_bavail * free.f_frsize >> 20

    async def _create(self, path: Path, backing: Path | None, backing_format: str | None, size_gib: int) -> None:
        free = os.statvfs(self.folder)
        if free.f_bavail * free.f_frsize < LEAST_FREE_MIB * 2**20:
            raise ImageFault(
                f"The disk that holds the desktops is full ({self.folder}). Free some space and start again."
            )
        command = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing is not None:
            command += ["-b", str(backing), "-F", backing_format or "raw", str(path)]
        else:
            command += [str(path), f"{size_gib}G"]
        making = asyncio.ensure_future(asyncio.to_thread(_run, command))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])  # else it would write into a file that was removed
            raise


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
            timeout=QEMU_IMG_LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ImageFault(f"Making the desktop's disk took more than {QEMU_IMG_LIMIT:.0f} seconds.") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise ImageFault(f"The desktop's disk cannot be made: {words[-1] if words else 'qemu-img failed'}.")
