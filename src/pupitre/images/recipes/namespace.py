"""A folder in which the root of a user namespace may work.

An ordinary user's mmdebstrap has a root that is none: one of the numbers that /etc/subuid gives to the user.
It passes a folder only where others may, so that a home of mode 700 (Debian's default) keeps it out of the
image store there. Then it works in a temporary folder, which nobody but that root and the user may enter.
"""

import contextlib
import os
import pwd
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pupitre.errors import SetupError
from pupitre.images.files import empty
from pupitre.timings import BUILD_LEFTOVER

ELSEWHERE = (Path("/var/tmp"), Path("/tmp"))  # a folder of our own is made in it
PREFIX = "pupitre-build-"
ACL_VERSION = 2
OWNER, USER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
NOBODY = 0xFFFFFFFF
"""Format and tags of ``system.posix_acl_access`` (linux/posix_acl_xattr.h)."""


@contextlib.contextmanager
def workplace(folder: Path, space_mib: int) -> Iterator[Path]:
    """``folder`` where we are root; else one on a disk with room, which is emptied and removed at the end.

    Raises `SetupError`.
    """
    if os.geteuid() == 0:
        yield folder
        return
    tried = []
    for base in (folder, *ELSEWHERE):
        free = shutil.disk_usage(base).free >> 20 if base.is_dir() else 0
        if free < space_mib:
            tried.append(f"{base} has {free} MiB free")
        elif (closed := closed_above(base)) is not None:
            tried.append(f"{closed} may not be passed")
        else:
            _sweep(base)
            place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            break
    else:
        raise SetupError(
            f"No folder has {space_mib} MiB for the root of a user namespace: {', '.join(tried)}.",
            "Free some space in /var/tmp, or build the image as root.",
        )
    try:
        admit(place, subordinate_root(), 7)
        yield place
    finally:
        empty(place)


def _sweep(base: Path) -> None:
    """Take away what a killed build of this user left there."""
    for left in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            status = left.lstat()
            is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if is_own and time.time() - status.st_mtime > BUILD_LEFTOVER:
                empty(left)


def closed_above(folder: Path) -> Path | None:
    """The first folder on the way to ``folder`` that other users may not pass."""
    way = (*reversed(folder.resolve().parents), folder.resolve())
    return next((each for each in way if not each.stat().st_mode & stat.S_IXOTH), None)


def admit(path: Path, user: int, rights: int) -> None:
    """``user`` gets ``rights`` (4 read, 2 write, 1 pass); the owner keeps all and no one else has any.

    Raises `SetupError` where the file system has no access control lists.
    """
    entries = [(OWNER, 7, NOBODY), (USER, rights, user), (GROUP, 0, NOBODY), (MASK, rights, NOBODY), (OTHER, 0, NOBODY)]
    acl = struct.pack("<I", ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as error:
        raise SetupError(
            f"{path} cannot be opened to the root of a user namespace: {error.strerror}.",
            "Use a file system with access control lists for /var/tmp, or build the image as root.",
        ) from error


def subordinate_root() -> int:
    """The first number that /etc/subuid gives to this user: as whom mmdebstrap's root works. Raises `SetupError`."""
    user = os.geteuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if owner in {name, str(user)} and first.isdigit() and count.isdigit() and int(count) >= 65536:
            return int(first)
    raise SetupError(
        f"The user {name} has no 65,536 subordinate numbers in /etc/subuid, which building a Debian takes.",
        f"Run: sudo usermod --add-subuids 200000-265535 --add-subgids 200000-265535 {name}",
    )
