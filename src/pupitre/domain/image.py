"""An image: a computer as it was prepared, from which desktops start.

The limits of an image are here and nowhere else: importing, publishing, reading a manifest
and reporting it ask the same functions, so that what one of them takes, all of them take.
"""

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from pupitre.domain.bounds import Fraction, Line, MemoryMib, Name, Text, Time, Vcpus
from pupitre.domain.text import text_fault

LEAST_MEMORY_MIB, MOST_MEMORY_MIB = 64, 1 << 20
"""A Linux needs the one; no host has more than the other (1 TiB)."""
MOST_VCPUS = 64
MOST_DISK_GIB = 2048
LONGEST_NAME = 255
LONGEST_DESCRIPTION = 1000
LONGEST_CMDLINE = 2047
"""Linux keeps 2,048 bytes of it on x86 (``COMMAND_LINE_SIZE``), with a final NUL."""
IMAGE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
DIGEST = re.compile(r"[0-9a-f]{64}")
ID_RULE = "An image's id is 1 to 48 small letters, digits and hyphens, and begins with no hyphen."


class CopyState(StrEnum):
    """State of an image on one host, and of the image as a whole (its best copy)."""

    WANTED = "wanted"
    FETCHING = "fetching"
    READY = "ready"
    STALE = "stale"
    FAILED = "failed"


class DiskFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"


class DiskBus(StrEnum):
    """Bus of the guest's disk. Computers of other products know SATA; not all have a driver for virtio."""

    VIRTIO = "virtio"
    SATA = "sata"


class Firmware(StrEnum):
    BIOS = "bios"
    EFI = "efi"


VIDEO_MODELS = frozenset({"vga", "virtio"})


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Specification from which a host boots an image. File names are content digests in the image store.

    ``kernel`` and ``initrd`` are set for direct kernel boot; otherwise the
    firmware boots ``disk`` (or the ISO as a CD-ROM).
    """

    id: Name
    disk: Name
    disk_format: DiskFormat
    memory_mib: int
    vcpus: int
    kernel: Name | None = None
    initrd: Name | None = None
    cmdline: str | None = None
    video: str = "vga"
    disk_gib: int = 10
    disk_bus: DiskBus = DiskBus.VIRTIO
    firmware: Firmware = Firmware.BIOS


@dataclass(frozen=True, slots=True)
class Image:
    """An image as people see it. ``progress`` is 0 to 1 while it is being made, with ``reason`` the step."""

    id: Name
    name: Line
    description: Text
    state: CopyState
    since: Time
    memory_mib: MemoryMib = 0
    vcpus: Vcpus = 0
    progress: Fraction | None = None
    reason: Text | None = None


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """An image on a host. ``spec`` is there when the copy is ready."""

    image: Image
    spec: ImageSpec | None = None


def spec_fault(spec: ImageSpec) -> str | None:
    """Why no desktop can be started from ``spec``, in one sentence; None where one can."""
    if not IMAGE_ID.fullmatch(spec.id):
        return ID_RULE
    for name, value, least, most, unit in (
        ("memory", spec.memory_mib, LEAST_MEMORY_MIB, MOST_MEMORY_MIB, " MiB"),
        ("number of processors", spec.vcpus, 1, MOST_VCPUS, ""),
        ("disk", spec.disk_gib, 1, MOST_DISK_GIB, " GiB"),
    ):
        if not least <= value <= most:
            return f"An image's {name} is {least} to {most}{unit}, not {value}."
    if spec.video not in VIDEO_MODELS:
        return f"An image's video is {' or '.join(sorted(VIDEO_MODELS))}."
    if spec.cmdline is not None and (fault := text_fault(spec.cmdline, LONGEST_CMDLINE)):
        return f"The image's kernel command line {fault}."
    return None


def name_fault(name: str, description: str = "") -> str | None:
    """Why an image cannot be called and described like this, in one sentence; None where it can."""
    if fault := text_fault(name, LONGEST_NAME):
        return f"The image's name {fault}."
    if description and (fault := text_fault(description, LONGEST_DESCRIPTION)):
        return f"The image's description {fault}."
    return None


def id_from_name(name: str, digest: str) -> str:
    """The id of an image that nobody gave one: its name in small ASCII letters, digits and hyphens.

    Accents are dropped. Where letters or digits of another script are lost, the beginning of ``digest``
    (of the name, in hexadecimal) keeps names apart that would be one.
    """
    plain = "".join(
        each for each in unicodedata.normalize("NFKD", name.casefold()) if unicodedata.category(each) != "Mn"
    )
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:48].strip("-")
    if slug and all(character.isascii() for character in plain if character.isalnum()):
        return slug
    return f"{slug[:32].strip('-') if re.search('[a-z]', slug) else 'image'}-{digest[:6]}"
