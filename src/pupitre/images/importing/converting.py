"""Makes a qcow2 of another format's disk, by qemu-img with few rights.

The file is handed over as standard input and the disk as an open descriptor: qemu-img reaches no path. What it
may write is bounded by what is free, the time by what there is to read.
"""

import os
import re
import subprocess
from pathlib import Path

from pupitre.errors import HostileImage
from pupitre.images.importing.confine import ENVIRONMENT, STDIN, confined, driver, nobody, refusal
from pupitre.images.importing.header import AnyFormat
from pupitre.images.programs import find, require, run
from pupitre.images.progress import Progress

LEAST_CPU_SECONDS = 60
SOURCE_BYTES_PER_SECOND = 4 << 20
DISK_BYTES_PER_SECOND = 8 << 30
"""A disk without data is walked through quickly, and at least so."""
WALL_FACTOR = 20
RESERVE = 512 << 20
"""Bytes that are left free on the disk of the store."""
_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")


def convert(source: Path, disk_format: AnyFormat, target: Path, virtual_bytes: int, progress: Progress) -> None:
    """Raises `HostileImage`, `SetupError`. ``source`` must have been approved by its reader, and be world-readable."""
    require("prlimit", "setpriv", "qemu-img")
    progress("Converting the image", 0.0)
    run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(virtual_bytes)])
    status = os.statvfs(target.parent)
    room = max(0, status.f_bavail * status.f_frsize - RESERVE)
    seconds = LEAST_CPU_SECONDS + source.stat().st_size // SOURCE_BYTES_PER_SECOND
    seconds += virtual_bytes // DISK_BYTES_PER_SECOND
    with source.open("rb") as stdin, target.open("r+b") as out:
        if os.geteuid() == 0:
            os.fchown(out.fileno(), *nobody())
        os.fchmod(out.fileno(), 0o600)
        command = [
            *confined(seconds, room), str(find("qemu-img")), "convert", "-p", "-n", "--target-is-zero",
            "-f", driver(disk_format), "-O", "qcow2", STDIN, f"/dev/fd/{out.fileno()}",
        ]  # fmt: skip
        _follow(command, stdin.fileno(), out.fileno(), seconds, progress)
        os.fchown(out.fileno(), os.geteuid(), os.getegid())
        os.fchmod(out.fileno(), 0o444)


def _follow(command: list[str], stdin: int, out: int, seconds: int, progress: Progress) -> None:
    limit = ["timeout", "--signal=KILL", str(seconds * WALL_FACTOR)]
    said: list[str] = []
    with subprocess.Popen(
        [*limit, *command], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(out,),
        text=True, errors="replace", cwd="/", env=ENVIRONMENT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:  # a progress line ends with a carriage return, which ends a line too
                if found := _PERCENT.search(line):
                    progress("Converting the image", float(found[1]) / 100)
                elif line.strip():
                    said = [*said[-4:], line]
        except BaseException:
            process.kill()
            raise
    if process.returncode in (124, 137):
        raise HostileImage(f"qemu-img needed more than {seconds} s of processor time for the image.")
    if process.returncode:
        code = process.returncode
        raise refusal(128 - code if code > 128 else code, "\n".join(said), seconds)
