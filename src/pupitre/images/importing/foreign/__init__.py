"""Disk formats of other products, read here before qemu-img converts them: they stand alone, or they are refused."""

from collections.abc import Callable, Mapping
from typing import BinaryIO

from pupitre.images.importing.foreign import vdi, vhdx, vmdk
from pupitre.images.importing.header import Foreign

READERS: Mapping[Foreign, Callable[[BinaryIO, int], int]] = {
    Foreign.VMDK: vmdk.virtual_bytes,
    Foreign.VDI: vdi.virtual_bytes,
    Foreign.VHDX: vhdx.virtual_bytes,
}
"""Each takes the file and its size, and gives the size of the disk in it. Raises `HostileImage`."""
