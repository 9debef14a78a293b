"""Outside programs: found or named with their Debian package, run as argument lists.

A program never outlives us: it gets SIGTERM when this process dies, and is ended
and awaited when the caller is interrupted.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pupitre.errors import ImageFault, SetupError
from pupitre.images.importing.faults import disk_full

DEBIAN_PACKAGE = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "fakechroot": "fakechroot",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "prlimit": "util-linux",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
}
LINES_IN_REASON = 6


def find(program: str) -> str | None:
    """Path of a program. An ordinary user's PATH often lacks the folders where mke2fs lives."""
    return shutil.which(program, path=_path())


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def require(*programs: str) -> None:
    """Raises `SetupError` that names all Debian packages that are missing, and the command."""
    missing = [program for program in programs if find(program) is None]
    if missing:
        packages = sorted({DEBIAN_PACKAGE.get(program, program) for program in missing})
        raise SetupError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            f"Run: sudo apt-get install {' '.join(packages)}",
        )


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    reason: Callable[[], str | None] = lambda: None,
) -> str:
    """Output of a program, standard error included; ``on_line`` is called with each line as it comes.

    ``reason`` is asked, when it has failed, for what the program's last lines do not say.
    Raises `ImageFault` with the program's last words, `SetupError` where the disk is full.
    """
    require(str(argv[0]))
    command = ["setpriv", "--pdeathsig", "TERM", "--", str(find(str(argv[0]))), *map(str, argv[1:])]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:  # universal newlines: a progress bar's \r ends a line too
                lines.append(line)
                if on_line:
                    on_line(line.rstrip())
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise _fault(str(argv[0]), process.returncode, lines, cwd or Path.cwd(), reason())
    return "".join(lines)


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the program's whole group (it may clean up), SIGKILL 20 s later."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
            return


def _fault(program: str, code: int, lines: list[str], folder: Path, reason: str | None) -> Exception:
    said = [line.strip() for line in lines if line.strip() and not line.startswith("I:")]
    if any("No space left on device" in line for line in lines):
        return disk_full(folder)
    if any("Could not resolve" in line or "Unable to fetch" in line or "Failed to fetch" in line for line in lines):
        return SetupError("Debian's packages could not be fetched.", "Check the network, then run: sudo apt-get update")
    words = reason or " / ".join(said[-LINES_IN_REASON:]) or "no message"
    return ImageFault(f"{program} ended with code {code}: {words[-600:]}")
