"""Writes an initramfs: a cpio archive in the "newc" form.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

Reproducible: no clock, no inode numbers of the building machine, owner root.
"""

import stat
from typing import BinaryIO

BLOCK = 512


class Archive:
    """Entries go straight to ``out``; `close` writes the trailer."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._size = 0

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(path, stat.S_IFCHR | mode, b"", (major, minor))

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, b"")
        self._write(b"\0" * (-self._size % BLOCK))

    def _entry(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.lstrip("/").encode() + b"\0"
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self._write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        self._pad()
        self._write(data)
        self._pad()

    def _pad(self) -> None:
        self._write(b"\0" * (-self._size % 4))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._size += len(data)
