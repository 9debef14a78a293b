"""Files of the image store: written whole or not at all, and on disk before anyone is told."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pupitre.errors import Conflict
from pupitre.images.importing.faults import FULL
from pupitre.images.programs import find, run


def write(path: Path, value: object) -> None:
    """Replaces the file, durably."""
    _replace(path, encoded(value), durable=True)
    sync_folder(path.parent)


def write_passing(path: Path, value: object) -> None:
    """Write a file that nobody needs after a power failure.

    On a full disk what is there is overwritten in its place.
    """
    data = encoded(value)
    try:
        _replace(path, data, durable=False)
    except OSError as error:
        if error.errno not in FULL or not path.exists():
            raise
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()


def encoded(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)


def _replace(path: Path, data: bytes, *, durable: bool) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, open to read whatever the umask: the emulator may run as another user."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def empty(folder: Path) -> None:
    """Removes the folder, files of subordinate users included (an ordinary user's mmdebstrap leaves such)."""
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        if os.geteuid() == 0 or find("mmdebstrap") is None:
            raise
        run(["mmdebstrap", "--unshare-helper", "rm", "-rf", folder])


@contextlib.contextmanager
def lock(path: Path, *, wait: str | None = None) -> Iterator[None]:
    """An exclusive lock that ends with the process. With ``wait``: raises `Conflict` with it instead of waiting."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if wait else 0))
        except BlockingIOError as error:
            raise Conflict(str(wait)) from error
        yield
