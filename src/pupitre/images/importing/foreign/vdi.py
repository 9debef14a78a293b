"""VirtualBox's own disk format, dynamic or of fixed size.

Source: QEMU, block/vdi.c.
"""

import struct
from typing import BinaryIO

from pupitre.errors import HostileImage

HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
SIGNATURE = 0xBEDA107F
VERSION = 0x00010001
KINDS = (1, 2)
SECTOR = 512
BLOCK = 1 << 20
NOBODY = bytes(16)


def virtual_bytes(file: BinaryIO, size: int) -> int:
    """The size of the disk. Raises `HostileImage`."""
    file.seek(0)
    data = file.read(HEADER.size)
    if len(data) < HEADER.size:
        raise HostileImage("The VDI image's header is cut off.")
    (_text, signature, version, _header_size, kind, _flags, _words, map_at, data_at, _cylinders, _heads, _sectors,
     sector, _unused, disk, block, block_extra, blocks, allocated, _own, _snapshot, link, parent,
     ) = HEADER.unpack(data)  # fmt: skip
    if signature != SIGNATURE or version != VERSION:
        raise HostileImage("The VDI image has a version that is not known here.")
    if kind not in KINDS or link != NOBODY or parent != NOBODY:
        raise HostileImage("The VDI image refers to a parent; clone it in VirtualBox first, then export it.")
    if sector != SECTOR or block != BLOCK or block_extra:
        raise HostileImage("The VDI image's blocks have a size that is not known here.")
    if not disk <= blocks * BLOCK < disk + BLOCK or allocated > blocks:
        raise HostileImage("The VDI image's block map does not fit the disk it claims.")
    if map_at % SECTOR or data_at % SECTOR or not HEADER.size <= map_at <= map_at + 4 * blocks <= data_at <= size:
        raise HostileImage("The VDI image's block map lies outside the file; it may be cut off.")
    if data_at + allocated * BLOCK > size:
        raise HostileImage("The VDI image is cut off.")
    return int(disk)
