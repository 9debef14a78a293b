"""qemu-img on a file that a stranger made: few rights, little memory, little time, and no path but the file's.

The file is handed over as standard input, open for reading: qemu-img need not
reach the folder it is in, and no file name is parsed. It runs as nobody where
we are root, and can write nothing.
"""

import functools
import json
import os
import pwd
import signal
import subprocess
from pathlib import Path
from typing import Any

from pupitre.domain.image import DiskFormat
from pupitre.domain.text import shown
from pupitre.errors import HostileImage, ImageFault
from pupitre.images.importing.header import SECTOR, AnyFormat
from pupitre.images.programs import find, require
from pupitre.timings import IMAGE_CHECK_CPU, IMAGE_CHECK_LIMIT

MEMORY_BYTES = 512 << 20
STDIN = "/dev/stdin"
ENVIRONMENT = {"LC_ALL": "C", "MALLOC_ARENA_MAX": "1", "PATH": os.defpath}
"""Each arena takes 64 MiB of the address space, and each thread would have one."""


def image_info(file: Path, disk_format: AnyFormat) -> dict[str, Any]:
    """Answer of ``qemu-img info`` about a world-readable file. Raises `HostileImage`."""
    answer = json.loads(_qemu_img(file, ["info", "-f", driver(disk_format), "--output=json", STDIN]))
    if not isinstance(answer, dict):
        raise ImageFault("qemu-img info gave an answer that is no object.")
    return answer


def check_image(file: Path, disk_format: AnyFormat) -> None:
    """``qemu-img check``, for the formats that have metadata to check. Raises `HostileImage`."""
    if disk_format in (DiskFormat.RAW, DiskFormat.ISO):
        return
    if disk_format is not DiskFormat.QCOW2:
        _qemu_img(file, ["check", "-q", "-f", driver(disk_format), STDIN])
        return
    found = json.loads(_qemu_img(file, ["check", "--output=json", "-f", "qcow2", STDIN]))
    cluster = image_info(file, disk_format).get("cluster-size", 0)
    if int(found.get("image-end-offset", 0)) - file.stat().st_size >= max(int(cluster), SECTOR):
        raise HostileImage("The image is cut off: it refers to clusters beyond its end.")


def driver(disk_format: AnyFormat) -> str:
    """QEMU's name of the format."""
    return "raw" if disk_format is DiskFormat.ISO else str(disk_format)


def _qemu_img(file: Path, arguments: list[str]) -> str:
    require("prlimit", "setpriv", "qemu-img")
    command = [*confined(IMAGE_CHECK_CPU, 0), str(find("qemu-img")), *arguments]
    try:
        with file.open("rb") as stdin:
            done = subprocess.run(
                command, stdin=stdin, capture_output=True, text=True, errors="replace",
                timeout=IMAGE_CHECK_LIMIT, cwd="/", env=ENVIRONMENT, check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HostileImage(f"qemu-img could not read the image within {IMAGE_CHECK_LIMIT} s.") from error
    if done.returncode:
        raise refusal(done.returncode, done.stderr or done.stdout, IMAGE_CHECK_CPU)
    return done.stdout


def confined(cpu_seconds: int, file_bytes: int) -> list[str]:
    """Prefix of a command that reads a stranger's file; it may write ``file_bytes`` to a file."""
    command = [
        *_without_network(),
        str(find("prlimit")),
        f"--cpu={cpu_seconds}",
        f"--as={MEMORY_BYTES}",
        f"--fsize={file_bytes}",
        "--core=0",
        str(find("setpriv")),
        "--no-new-privs",
        "--pdeathsig=KILL",
    ]
    if os.geteuid() == 0:
        user, group = nobody()
        command += [f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    return command


def nobody() -> tuple[int, int]:
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


@functools.cache
def _without_network() -> tuple[str, ...]:
    """A network namespace of its own, where this machine lets us make one."""
    command = (str(find("unshare")), "--net", *(() if os.geteuid() == 0 else ("--user", "--map-current-user")))
    probe = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if probe.returncode == 0 else ()


def refusal(code: int, said: str, cpu_seconds: int) -> HostileImage:
    """Why qemu-img did not end well."""
    if -code == signal.SIGXFSZ:
        return HostileImage("The image's disk holds more than this machine has room for.")
    if code < 0:
        return HostileImage(f"qemu-img needed more than {cpu_seconds} s or {MEMORY_BYTES >> 20} MiB for the image.")
    lines = said.strip().splitlines()
    return HostileImage(f"qemu-img found the image damaged: {shown(lines[-1], 300) if lines else 'no message'}")
