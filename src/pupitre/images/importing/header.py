"""Reads an image's header before any other program does, and refuses what could reach beyond the file.

The format is the user's word, or what the file's name and its first bytes agree
on; it is never guessed from content alone, because a guest can write whatever it
likes at the start of a raw disk. What is refused: references to other files
(backing file, external data), encryption, features that are not known here, sizes
made to exhaust memory or disk, and another format's file under a false name.

Sources: QEMU, docs/interop/qcow2.txt; block/*.c ``*_probe`` for the magics;
ECMA-119 section 8 for ISO 9660.
"""

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from pupitre.domain.image import DiskFormat
from pupitre.domain.text import shown
from pupitre.errors import HostileImage, Invalid

SECTOR = 512
TIB = 1 << 40
MAX_VIRTUAL_BYTES = 2 * TIB
ISO_SECTOR = 2048
ISO_MAGIC_AT = 16 * ISO_SECTOR + 1
ISO_MAGIC = b"CD001"

QCOW_MAGIC = b"QFI\xfb"
QCOW2_V2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
QCOW2_V3_TAIL = struct.Struct(">QQQII")
DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2
EXTENSIONS_REFUSED = {
    0xE2792ACA: "names a backing file's format",
    0x44415441: "names an external data file",
    0x0537BE77: "is encrypted",
}
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 256

MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, QCOW_MAGIC, "a QCOW image"),
    (257, b"ustar", "a tar archive, as an OVA is"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"conectix", "a VHD image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"QED\0", "a QED image"),
    (0, b"LUKS\xba\xbe", "an encrypted LUKS volume"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "a cloop image"),
    (0, b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (0, b"BZh", "compressed with bzip2: unpack it first"),
    (0, b"PK\x03\x04", "a zip archive: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
)
TRAILERS = ((b"conectix", "a VHD image"), (b"koly", "a DMG image"))
HEAD_BYTES = 4096


class Foreign(StrEnum):
    """Formats of other products: read by `pupitre.images.importing.foreign`, then converted."""

    VMDK = "vmdk"
    VDI = "vdi"
    VHDX = "vhdx"
    OVA = "ova"


AnyFormat = DiskFormat | Foreign
EXTENSIONS: Mapping[str, AnyFormat] = {
    ".qcow2": DiskFormat.QCOW2,
    ".raw": DiskFormat.RAW,
    ".img": DiskFormat.RAW,
    ".iso": DiskFormat.ISO,
} | {f".{kind}": kind for kind in Foreign}
SEEN: tuple[tuple[int, bytes, AnyFormat], ...] = (
    (0, QCOW_MAGIC, DiskFormat.QCOW2),
    (0, b"KDMV", Foreign.VMDK),
    (0x40, b"\x7f\x10\xda\xbe", Foreign.VDI),
    (0, b"vhdxfile", Foreign.VHDX),
    (257, b"ustar", Foreign.OVA),
    (ISO_MAGIC_AT, ISO_MAGIC, DiskFormat.ISO),
)


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a harmless image."""

    disk_format: DiskFormat
    virtual_bytes: int
    file_bytes: int


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read, and nothing else: no device, no pipe that would wait for ever. Raises `Invalid`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Invalid(f"{path} cannot be opened: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid(f"{path} is not a file.")
    return os.fdopen(descriptor, "rb")


def agreed_format(path: Path, file: BinaryIO) -> AnyFormat:
    """The format that the file's name and its first bytes agree on. Raises `Invalid` where they do not."""
    named = EXTENSIONS.get(path.suffix.lower())
    label = shown(path.name, 200)
    if named is None:
        raise Invalid(f"The name {label} does not say the format. Add --format: {', '.join((*DiskFormat, *Foreign))}.")
    if named is Foreign.VMDK and is_vmdk_text(_read(file, 0, HEAD_BYTES)):
        raise HostileImage(
            f"{label} is a VMDK descriptor, which names other files. Export the computer as an OVA, or make one file of"
            " the disk: qemu-img convert -O qcow2"
        )
    seen = next((kind for at, magic, kind in SEEN if _read(file, at, len(magic)) == magic), DiskFormat.RAW)
    if seen is not named:
        raise Invalid(f"{label} is named like {named}, but begins like {seen}. Say which with --format.")
    return named


def read_header(file: BinaryIO, disk_format: DiskFormat, *, max_virtual_bytes: int = MAX_VIRTUAL_BYTES) -> Header:
    """The header of an image that is what ``disk_format`` says and stands alone. Raises `HostileImage`."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise HostileImage("The file is empty.")
    if disk_format is DiskFormat.QCOW2:
        virtual = _qcow2(file, size)
    elif disk_format is DiskFormat.ISO:
        virtual = _iso(file, size)
    else:
        virtual = _raw(file, size)
    return Header(disk_format, checked_size(virtual, max_virtual_bytes), size)


def checked_size(virtual: int, most: int = MAX_VIRTUAL_BYTES) -> int:
    """The size that a disk claims, if it is allowed. Raises `HostileImage`."""
    if not 0 < virtual <= most:
        raise HostileImage(f"The disk claims {virtual / TIB:.1f} TiB; at most {most / TIB:.1f} are allowed.")
    return virtual


def foreign_magic(file: BinaryIO, size: int) -> str | None:
    """The other format that the file begins or ends like, in words."""
    head = _read(file, 0, HEAD_BYTES)
    for offset, magic, words in MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return words
    if is_vmdk_text(head):
        return "a VMDK descriptor"
    tail = _read(file, max(0, size - SECTOR), SECTOR)
    return next((words for magic, words in TRAILERS if tail.startswith(magic)), None)


def is_vmdk_text(head: bytes) -> bool:
    """Whether QEMU takes it as a VMDK descriptor: if "version=" is its first line that is no comment."""
    lines = (line.strip() for line in head.split(b"\n"))
    return next((line for line in lines if line and not line.startswith(b"#")), b"").startswith(b"version=")


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _raw(file: BinaryIO, size: int) -> int:
    if other := foreign_magic(file, size):
        raise HostileImage(f"The file is claimed to be a raw disk, but is {other}.")
    if size % SECTOR:
        raise HostileImage(f"A raw disk is a whole number of {SECTOR}-byte sectors; the file may be cut off.")
    return size


def _iso(file: BinaryIO, size: int) -> int:
    if _read(file, ISO_MAGIC_AT, len(ISO_MAGIC)) != ISO_MAGIC:
        raise HostileImage("The file is claimed to be an ISO image, but has no CD001 descriptor.")
    if other := foreign_magic(file, size):
        raise HostileImage(f"The file is claimed to be an ISO image, but is {other}.")
    if size % ISO_SECTOR:
        raise HostileImage(f"An ISO image is a whole number of {ISO_SECTOR}-byte sectors; the file may be cut off.")
    return size


def _qcow2(file: BinaryIO, size: int) -> int:
    start = _read(file, 0, QCOW2_V2_HEADER.size + QCOW2_V3_TAIL.size)
    if start[:4] != QCOW_MAGIC or len(start) < QCOW2_V2_HEADER.size:
        raise HostileImage("The file is claimed to be qcow2, but does not begin like one.")
    (
        _magic, version, backing_at, backing_length, cluster_bits, virtual, crypt, l1_entries, l1_at,
        refcounts_at, refcount_clusters, snapshots, _snapshots_at,
    ) = QCOW2_V2_HEADER.unpack_from(start)  # fmt: skip
    if version not in (2, 3):
        raise HostileImage(f"The image is QCOW version {version}; only 2 and 3 are known here.")
    if not 9 <= cluster_bits <= 21:
        raise HostileImage("The image's cluster size is out of range.")
    cluster = 1 << cluster_bits
    if backing_at or backing_length:
        raise HostileImage("The image refers to a backing file; flatten it first with qemu-img convert.")
    if crypt:
        raise HostileImage("The image is encrypted.")
    incompatible, header_bytes, refcount_order = 0, QCOW2_V2_HEADER.size, 4
    if version == 3:
        if len(start) < QCOW2_V2_HEADER.size + QCOW2_V3_TAIL.size:
            raise HostileImage("The image's header is cut off.")
        incompatible, _compatible, _autoclear, refcount_order, header_bytes = QCOW2_V3_TAIL.unpack_from(
            start, QCOW2_V2_HEADER.size
        )
        _check_features(incompatible)
        if not QCOW2_V2_HEADER.size + QCOW2_V3_TAIL.size <= header_bytes <= cluster or header_bytes % 8:
            raise HostileImage("The image's header has an impossible length.")
    if refcount_order > 6:
        raise HostileImage("The image's reference counts have an impossible width.")
    _check_table("L1", l1_at, l1_entries * 8, MAX_L1_BYTES, cluster, size)
    _check_table("refcount", refcounts_at, refcount_clusters * cluster, MAX_REFCOUNT_TABLE_BYTES, cluster, size)
    if snapshots > MAX_SNAPSHOTS:
        raise HostileImage(f"The image has {snapshots} internal snapshots; at most {MAX_SNAPSHOTS} are allowed.")
    l2_entries = cluster // (16 if incompatible & EXTENDED_L2 else 8)
    if l1_entries * l2_entries * cluster < virtual:
        raise HostileImage("The image's L1 table is too small for the disk it claims.")
    _check_extensions(_read(file, header_bytes, cluster - header_bytes))
    return int(virtual)


def _check_features(incompatible: int) -> None:
    if incompatible & EXTERNAL_DATA:
        raise HostileImage("The image keeps its data in an external file; flatten it first with qemu-img convert.")
    if incompatible & (DIRTY | CORRUPT):
        raise HostileImage("The image was not closed in order or is damaged; repair it with qemu-img check -r all.")
    if unknown := incompatible & ~KNOWN_INCOMPATIBLE:
        raise HostileImage(f"The image uses features that are not known here ({unknown:#x}).")


def _check_table(name: str, offset: int, length: int, limit: int, cluster: int, size: int) -> None:
    if length > limit:
        raise HostileImage(f"The image's {name} table claims {length >> 20} MiB; at most {limit >> 20} are allowed.")
    if offset % cluster or (length and offset < cluster) or offset + length > size:
        raise HostileImage(f"The image's {name} table lies outside the file.")


def _check_extensions(area: bytes) -> None:
    """Header extensions: type, length, data padded to 8 bytes; type 0 ends them. Unknown ones may be ignored."""
    at = 0
    while at + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, at)
        if kind == 0:
            return
        if kind in EXTENSIONS_REFUSED:
            raise HostileImage(f"The image {EXTENSIONS_REFUSED[kind]}.")
        at += 8 + length + (-length % 8)
    if at > len(area):
        raise HostileImage("A header extension of the image runs out of the header.")
