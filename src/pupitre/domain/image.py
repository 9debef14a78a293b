"""An image: a computer as it was prepared, from which desktops start."""

from dataclasses import dataclass
from enum import StrEnum


class CopyState(StrEnum):
    """Of an image on one host, and of the image as a whole (its best copy)."""

    WANTED = "wanted"
    FETCHING = "fetching"
    READY = "ready"
    STALE = "stale"
    FAILED = "failed"


class DiskFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a host must know to boot an image. File names are content digests in the image store.

    ``kernel`` and ``initrd`` are set for direct kernel boot; otherwise the
    firmware boots ``disk`` (or the ISO as a CD-ROM).
    """

    id: str
    disk: str
    disk_format: DiskFormat
    memory_mib: int
    vcpus: int
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    video: str = "vga"
    disk_gib: int = 10


@dataclass(frozen=True, slots=True)
class Image:
    """An image as people see it. ``progress`` is 0 to 1 while it is being made, with ``reason`` the step."""

    id: str
    name: str
    description: str
    state: CopyState
    since: int
    memory_mib: int = 0
    vcpus: int = 0
    progress: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """An image on a host. ``spec`` is there when the copy is ready."""

    image: Image
    spec: ImageSpec | None = None
