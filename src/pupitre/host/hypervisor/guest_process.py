"""The emulator's process of a guest: what it takes of this host, and what it may take.

A guest comes after the processes that control it: they answer while guests keep every CPU busy, and of memory that
is gone the kernel ends a guest first. What an ordinary user may do too works everywhere: niceness, the kernel's
choice when memory is short (``oom_score_adj``), and a ceiling of memory (``RLIMIT_DATA``). CPU shares and a memory
limit of libvirt's cgroups come on top where `has_cgroups`.
"""

import contextlib
import os
import resource
import subprocess
from pathlib import Path

from pupitre.timings import LIMIT_GUEST_LIMIT

NICENESS = 5
"""About a third of the CPU time of a process that is not nice, where both want all."""
OOM_SCORE = 300
"""Added to the guest's badness, of 1000: it is ended before anything of ours that takes as much."""
ROOM_MIB = 1024
"""A guest's emulator may take this beyond the guest's own memory, several times what it needs, before it fails."""
CPU_SHARES = 50
"""Half of what other groups have by default (cgroup v2, ``cpu.weight`` 100)."""
CGROUPS = Path("/sys/fs/cgroup/cgroup.controllers")


def has_cgroups() -> bool:
    """Whether libvirt can limit guests by cgroups: as root, where one tree has both controllers (cgroup v2)."""
    try:
        controllers = CGROUPS.read_text().split()
    except OSError:
        return False
    return os.geteuid() == 0 and {"cpu", "memory"} <= set(controllers)


def pid_of(desktop: str, embed: Path | None) -> int | None:
    """The emulator's process, from libvirt's own note (``embed``: the root of its embedded driver)."""
    folder = embed / "run/qemu" if embed else Path("/run/libvirt/qemu")
    try:
        return int((folder / f"{desktop}.pid").read_text())
    except (OSError, ValueError):
        return None


def resident_mib(pid: int) -> int:
    """Memory of the process that is in use now, in MiB; 0 once it has ended (proc(5), ``statm``)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize() >> 20


def confine(pid: int, memory_mib: int) -> None:
    """Put the guest behind whatever controls it. What this user may not do to the process, or it has ended: nothing."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))
    _limit_memory(pid, (memory_mib + ROOM_MIB) << 20)
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # on Linux niceness is each thread's own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread), NICENESS)


def _limit_memory(pid: int, ceiling: int) -> None:
    try:
        resource.prlimit(pid, resource.RLIMIT_DATA, (ceiling, ceiling))
    except PermissionError:  # root without CAP_SYS_RESOURCE, as in a container: the guest's own user may
        with contextlib.suppress(OSError):
            owner = Path(f"/proc/{pid}").stat()
            if owner.st_uid and os.geteuid() == 0:
                become = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", "--"]
                command = [*become, "prlimit", f"--pid={pid}", f"--data={ceiling}:{ceiling}"]
                subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=LIMIT_GUEST_LIMIT
                )
    except (OSError, ValueError):
        pass  # it has ended
