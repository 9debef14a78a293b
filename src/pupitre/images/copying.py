"""Copies a file that may change meanwhile, or be a few blocks in a large hole, into a folder of ours.

Holes are neither read nor written: a sparse file takes the time and the space of what is in it.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pupitre.errors import Invalid
from pupitre.images.progress import Progress

CHUNK = 1 << 20
FICLONE = 0x40049409
"""ioctl of Linux: the target shares the source's blocks (ioctl_ficlone(2))."""
CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY}
NO_MORE_DATA = {errno.ENXIO}
KNOWS_NO_HOLES = {errno.EINVAL, errno.EOPNOTSUPP}


def copy(source: BinaryIO, target: Path, progress: Progress, name: str, part: tuple[int, int] | None = None) -> None:
    """The whole of ``source``, or the ``part`` of it at an offset with a length; world-readable.

    Raises `Invalid` where it cannot be read, or is not at rest.
    """
    before = os.fstat(source.fileno())
    begin, size = part or (0, before.st_size)
    progress("Copying the image", 0.0)
    with target.open("wb") as out:
        if part is not None or not _clone(source, out):
            total, done = min(allocated(before), size), 0
            for offset, length in extents(source, begin, begin + size):
                out.seek(offset - begin)
                for chunk in _chunks(source, offset, length, name):
                    if chunk.count(0) == len(chunk):
                        out.seek(len(chunk), os.SEEK_CUR)
                    else:
                        out.write(chunk)
                    done += len(chunk)
                    progress("Copying the image", done / max(total, 1))
            out.truncate(size)
        out.flush()
        copied = os.fstat(out.fileno()).st_size
    after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or copied != size:
        raise Invalid(f"{name} was changed while it was copied. Import it again when it is complete.")
    target.chmod(0o444)


def allocated(status: os.stat_result) -> int:
    """Bytes that a file takes on its disk: its holes take none."""
    return min(status.st_size, status.st_blocks * 512)


def extents(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what lies in a part of a file besides holes; all where the file system knows none."""
    while at < end:
        try:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            stop = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno in NO_MORE_DATA:
                return
            if error.errno not in KNOWS_NO_HOLES:
                raise
            start, stop = at, end
        if start >= end:
            return
        yield start, stop - start
        at = stop


def _chunks(source: BinaryIO, offset: int, length: int, name: str) -> Iterator[bytes]:
    end = offset + length
    while offset < end:
        try:
            chunk = os.pread(source.fileno(), min(CHUNK, end - offset), offset)
        except OSError as error:
            raise Invalid(f"{name} cannot be read at byte {offset}: {error.strerror}.") from error
        if not chunk:
            raise Invalid(f"{name} was cut short while it was copied. Import it again when it is complete.")
        yield chunk
        offset += len(chunk)


def _clone(source: BinaryIO, out: BinaryIO) -> bool:
    try:
        fcntl.ioctl(out.fileno(), FICLONE, source.fileno())
    except OSError as error:
        if error.errno not in CANNOT_CLONE:
            raise
        return False
    return True
