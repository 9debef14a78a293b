"""Unix sockets in deep folders: a socket's address has 107 bytes, a path may have thousands."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

LONGEST = 107
"""Bytes of a socket's path, see unix(7)."""


@contextlib.contextmanager
def short(folder: Path) -> Iterator[str]:
    """``folder`` under a name that leaves room in a socket's address, however deep it lies. For this process only."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        yield str(folder)
        return
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
