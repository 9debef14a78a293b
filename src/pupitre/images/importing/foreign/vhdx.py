"""Hyper-V's disk format.

Both region tables and both headers are read: which of them another program believes does not matter then.

Source: Microsoft, MS-VHDX.
"""

import struct
import uuid
from typing import BinaryIO

from pupitre.errors import HostileImage

KIB, MIB = 1 << 10, 1 << 20
MAGIC = b"vhdxfile"
HEADERS_AT = (64 * KIB, 128 * KIB)
REGIONS_AT = (192 * KIB, 256 * KIB)
REGION_HEAD, REGION = struct.Struct("<4sIII"), struct.Struct("<16sQII")
META_HEAD, META = struct.Struct("<8sHH20s"), struct.Struct("<16sIIII")
BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
HAS_PARENT = 2
MOST_ENTRIES = 64


def virtual_bytes(file: BinaryIO, size: int) -> int:
    """The size of the disk. Raises `HostileImage`."""
    if _read(file, 0, 8) != MAGIC:
        raise HostileImage("The VHDX image does not begin like one.")
    if not any(_read(file, at, 4) == b"head" for at in HEADERS_AT):
        raise HostileImage("The VHDX image has no header; it may be cut off.")
    sizes = {_metadata(file, table, size) for at in REGIONS_AT if (table := _regions(file, at, size)) is not None}
    if len(sizes) != 1:
        raise HostileImage("The VHDX image has no region table, or two that do not agree.")
    return sizes.pop()


def _regions(file: BinaryIO, at: int, size: int) -> int | None:
    """Place of the metadata, by the region table at ``at``; None where there is none."""
    data = _read(file, at, REGION_HEAD.size + MOST_ENTRIES * REGION.size)
    if len(data) < REGION_HEAD.size or data[:4] != b"regi":
        return None
    _signature, _checksum, count, _reserved = REGION_HEAD.unpack_from(data)
    if not 0 < count <= MOST_ENTRIES or len(data) < REGION_HEAD.size + count * REGION.size:
        raise HostileImage("The VHDX image's region table has an impossible length.")
    found: dict[uuid.UUID, tuple[int, int]] = {}
    for number in range(count):
        guid, offset, length, required = REGION.unpack_from(data, REGION_HEAD.size + number * REGION.size)
        kind = uuid.UUID(bytes_le=guid)
        if kind not in (BAT, METADATA):
            if required:
                raise HostileImage("The VHDX image needs a feature that is not known here.")
            continue
        if kind in found or offset % MIB or offset < MIB or not length or offset + length > size:
            raise HostileImage("A region of the VHDX image lies outside the file; it may be cut off.")
        found[kind] = offset, length
    if found.keys() != {BAT, METADATA}:
        raise HostileImage("The VHDX image lacks its block table or its metadata.")
    return found[METADATA][0]


def _metadata(file: BinaryIO, at: int, size: int) -> int:
    """The disk's size, by the metadata table at ``at``."""
    data = _read(file, at, META_HEAD.size + MOST_ENTRIES * META.size)
    if len(data) < META_HEAD.size or data[:8] != b"metadata":
        raise HostileImage("The VHDX image has no metadata.")
    _signature, _reserved, count, _more = META_HEAD.unpack_from(data)
    if not 0 < count <= MOST_ENTRIES or len(data) < META_HEAD.size + count * META.size:
        raise HostileImage("The VHDX image's metadata table has an impossible length.")
    disk = None
    for number in range(count):
        guid, offset, length, _flags, _pad = META.unpack_from(data, META_HEAD.size + number * META.size)
        kind = uuid.UUID(bytes_le=guid)
        if kind == PARENT:
            raise HostileImage("The VHDX image refers to a parent; merge its checkpoints in Hyper-V first.")
        if kind == PARAMETERS and _number(file, at + offset, length, size) >> 32 & HAS_PARENT:
            raise HostileImage("The VHDX image refers to a parent; merge its checkpoints in Hyper-V first.")
        if kind == DISK_SIZE:
            disk = _number(file, at + offset, length, size)
    if disk is None:
        raise HostileImage("The VHDX image does not say how large its disk is.")
    return disk


def _number(file: BinaryIO, at: int, length: int, size: int) -> int:
    if length != 8 or at + length > size:
        raise HostileImage("A value of the VHDX image's metadata has an impossible length or place.")
    return int.from_bytes(_read(file, at, 8), "little")


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)
