"""qemu-img on a file that a stranger made: few rights, little memory, little time, and no path but the file's.

The file is handed over as standard input, open for reading: qemu-img need not
reach the folder it is in, and no file name is parsed. It runs as nobody where
we are root, and can write nothing.
"""

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

from pupitre.domain.image import DiskFormat
from pupitre.errors import HostileImage, ImageFault
from pupitre.images.programs import find, require

CPU_SECONDS = 10
WALL_SECONDS = 60
MEMORY_BYTES = 512 << 20
STDIN = "/dev/stdin"


def image_info(file: Path, disk_format: DiskFormat) -> dict[str, Any]:
    """What ``qemu-img info`` says of a world-readable file. Raises `HostileImage`."""
    answer = json.loads(_qemu_img(file, ["info", "-f", _driver(disk_format), "--output=json", STDIN]))
    if not isinstance(answer, dict):
        raise ImageFault("qemu-img info gave an answer that is no object.")
    return answer


def check_image(file: Path, disk_format: DiskFormat) -> None:
    """``qemu-img check``, for the format that has metadata to check. Raises `HostileImage`."""
    if disk_format is DiskFormat.QCOW2:
        _qemu_img(file, ["check", "-q", "-f", "qcow2", STDIN])


def _driver(disk_format: DiskFormat) -> str:
    return "qcow2" if disk_format is DiskFormat.QCOW2 else "raw"


def _qemu_img(file: Path, arguments: list[str]) -> str:
    require("prlimit", "setpriv", "qemu-img")
    command = [
        str(find("prlimit")),
        f"--cpu={CPU_SECONDS}",
        f"--as={MEMORY_BYTES}",
        "--fsize=0",
        "--core=0",
        str(find("setpriv")),
        "--no-new-privs",
        "--pdeathsig=KILL",
    ]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        command += [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    command += [str(find("qemu-img")), *arguments]
    try:
        with file.open("rb") as stdin:
            done = subprocess.run(
                command, stdin=stdin, capture_output=True, text=True, errors="replace",
                timeout=WALL_SECONDS, cwd="/", env={"LC_ALL": "C"}, check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HostileImage(f"qemu-img could not read the image within {WALL_SECONDS} s.") from error
    if done.returncode < 0:
        raise HostileImage(f"qemu-img needed more than {CPU_SECONDS} s or {MEMORY_BYTES >> 20} MiB for the image.")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise HostileImage(f"qemu-img found the image damaged: {said[-1][:300] if said else 'no message'}")
    return done.stdout
