"""VMware's and VirtualBox's disk as one file: monolithic sparse, or stream-optimised as an OVA has it.

A VMDK may be a text that names other files; even in a whole one, QEMU follows that text where the header's
capacity is 0, and looks for a parent in it. So the embedded text is read here, word for word.

Source: VMware, Virtual Disk Format 5.0; QEMU, block/vmdk.c.
"""

import re
import struct
import sys
from array import array
from typing import BinaryIO

from pupitre.errors import HostileImage

HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
MAGIC = b"KDMV"
SECTOR = 512
AT_END = 0xFFFFFFFFFFFFFFFF
FOOTER_FROM_END = 2 * SECTOR
MOST_DESCRIPTOR = 128
LEAST_GRAIN, MOST_GRAIN = 8, 2048
ENTRIES = 512
FLAGS_AT, COMPRESSED = 8, 1 << 16
ZERO_GRAIN = 1
"""0 is a grain that is not there, 1 one of zeros."""
MOST_TABLES = 1 << 20
KINDS = {"monolithicsparse", "streamoptimized"}
PARENT_AREA = 0x200, 20 * SECTOR
"""Where QEMU looks for a parent, whatever the header says."""
_EXTENT = re.compile(r"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", re.MULTILINE | re.IGNORECASE)
_KIND = re.compile(r'^\s*createType\s*=\s*"?([^"\n]*)"?\s*$', re.MULTILINE | re.IGNORECASE)
_PARENT = re.compile(r"^\s*parentCID\s*=\s*(\w+)", re.MULTILINE | re.IGNORECASE)


def virtual_bytes(file: BinaryIO, size: int) -> int:
    """The size of the disk. Raises `HostileImage`."""
    capacity, grain, entries, descriptor_at, descriptor_size, tables_at = _header(file, 0)
    if tables_at == AT_END:
        # QEMU goes on with this second header: it must be of the same disk.
        footer = _header(file, size - FOOTER_FROM_END)
        if footer[:3] != (capacity, grain, entries):
            raise HostileImage("The VMDK image has two headers that do not agree; it may be cut off.")
        tables_at = footer[5]
    if tables_at == AT_END or not 0 < tables_at * SECTOR < size:
        raise HostileImage("The VMDK image's grain tables lie outside the file; it may be cut off.")
    if -(-capacity // (grain * entries)) > MOST_TABLES:
        raise HostileImage("The VMDK image claims too many grain tables.")
    if not 0 < descriptor_size <= MOST_DESCRIPTOR or not 0 < descriptor_at * SECTOR < size:
        raise HostileImage("The VMDK image has no descriptor of a usual size.")
    _check_descriptor(_read(file, descriptor_at * SECTOR, descriptor_size * SECTOR))
    if b"parentfilenamehint" in _read(file, *PARENT_AREA).lower():
        raise HostileImage("The VMDK image refers to a parent.")
    _check_grains(file, tables_at * SECTOR, capacity, grain, entries, size)
    return capacity * SECTOR


def _check_grains(file: BinaryIO, at: int, capacity: int, grain: int, entries: int, size: int) -> None:
    """The last grain must lie in the file: qemu-img reads what is cut off as zeros."""
    tables = _numbers(file, at, -(-capacity // (grain * entries)), size)
    last, place = 0, 0
    for number, table in enumerate(tables):
        if table > ZERO_GRAIN:
            grains = _numbers(file, table * SECTOR, entries, size)
            if (most := max(grains)) > last:
                last, place = most, number * entries + grains.index(most)
    if last <= ZERO_GRAIN:
        return
    is_compressed = struct.unpack("<I", _read(file, FLAGS_AT, 4))[0] & COMPRESSED
    marker = _read(file, last * SECTOR + 8, 4)
    if is_compressed and len(marker) == 4:
        end = last * SECTOR + 12 + int(struct.unpack("<I", marker)[0])
    else:
        end = (last + min(grain, capacity - place * grain)) * SECTOR
    if end > size:
        raise HostileImage("The VMDK image is cut off: it refers to grains beyond its end.")


def _numbers(file: BinaryIO, at: int, count: int, size: int) -> "array[int]":
    if at + 4 * count > size:
        raise HostileImage("The VMDK image's grain tables lie outside the file; it may be cut off.")
    numbers = array("I", _read(file, at, 4 * count))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _header(file: BinaryIO, at: int) -> tuple[int, int, int, int, int, int]:
    data = _read(file, max(at, 0), HEADER.size)
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise HostileImage("The VMDK image has no header where one must be; it may be cut off.")
    (_magic, version, _flags, capacity, grain, descriptor_at, descriptor_size, entries, _spare_at, tables_at,
     _overhead, _unclean, _line_ends, compression) = HEADER.unpack(data)  # fmt: skip
    if version not in (1, 2, 3):
        raise HostileImage(f"The VMDK image has version {version}; only 1 to 3 are known here.")
    if not 0 < capacity < 1 << 54:
        raise HostileImage("The VMDK image has no size of its own, or an impossible one: it may name other files.")
    if grain & (grain - 1) or not LEAST_GRAIN <= grain <= MOST_GRAIN or not 0 < entries <= ENTRIES:
        raise HostileImage("The VMDK image's grains have an impossible size.")
    if compression > 1:
        raise HostileImage(f"The VMDK image is compressed in a way that is not known here ({compression}).")
    return capacity, grain, entries, descriptor_at, descriptor_size, tables_at


def _check_descriptor(data: bytes) -> None:
    text = data.split(b"\0", 1)[0].decode("latin-1")
    kind = _KIND.search(text)
    if not kind or kind[1].strip().lower() not in KINDS:
        words = repr(kind[1].strip()[:40]) if kind else "of no kind"
        raise HostileImage(f"The VMDK image is {words}; only monolithicSparse and streamOptimized stand alone.")
    parents = {found[1].lower() for found in _PARENT.finditer(text)}
    if parents - {"ffffffff"} or "parentfilenamehint" in text.lower():
        raise HostileImage("The VMDK image refers to a parent.")
    extents = [found[1].upper() for found in _EXTENT.finditer(text)]
    if extents != ["SPARSE"]:
        raise HostileImage("The VMDK image names other files, or more parts than one.")


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)
