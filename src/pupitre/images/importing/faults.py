"""Errors of the operating system about an image store, as one sentence with the path and the remedy."""

import contextlib
import errno
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

from pupitre.errors import SetupError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DENIED = frozenset({errno.EACCES, errno.EPERM})
IN_THE_WAY = frozenset({errno.ENOTDIR, errno.EEXIST, errno.ELOOP})
ELSEWHERE = "move the images with PUPITRE_IMAGE_STORE"


@contextlib.contextmanager
def store_faults(root: Path) -> Iterator[None]:
    """Raises `SetupError` in place of an `OSError`."""
    try:
        yield
    except OSError as error:
        raise store_fault(root, error) from error


def store_fault(root: Path, error: OSError) -> SetupError:
    """``error`` happened somewhere in the store at ``root``."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
    said = (error.strerror or type(error).__name__).rstrip(".")
    if error.errno in FULL:
        return disk_full(root)
    if error.errno == errno.EROFS:
        return SetupError(
            f"The image store {root} is on a file system that is mounted read-only.",
            f"Mount it to be written, or {ELSEWHERE}.",
        )
    if error.errno in DENIED:
        return SetupError(
            f"{_user()} may not use {path} of the image store {root}.",
            f"Give it to that user with chown, or {ELSEWHERE}.",
        )
    if error.errno in IN_THE_WAY:
        blocking = next((each for each in (*reversed(path.parents), path) if _is_no_folder(each)), path)
        return SetupError(f"{blocking} is not a folder, but the image store {root} needs one there.",
                          f"Move it away, or {ELSEWHERE}.")  # fmt: skip
    if error.errno == errno.ESTALE:
        return SetupError(f"The network share of the image store {root} was exchanged.", "Mount it again.")
    return SetupError(
        f"The image store {root} cannot be used: {said} ({path}).", f"Check the disk that it is on, or {ELSEWHERE}."
    )


def disk_full(folder: Path) -> SetupError:
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    free = shutil.disk_usage(there).free >> 20
    return SetupError(f"The disk that holds {folder} is full ({free} MiB free).", f"Free some space, or {ELSEWHERE}.")


def _is_no_folder(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def _user() -> str:
    try:
        return f"The user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"The user {os.geteuid()}"
