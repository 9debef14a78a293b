"""Progress of a build, as a file of the image store."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from pupitre.timings import BUILD_SILENT


@dataclass(frozen=True, slots=True)
class BuildState:
    """A build's last word. ``born`` is the builder's start time, so that a reused pid is told apart.

    ``machine`` is the host name where it runs: a store may be shared by several machines. ``again`` is the
    sentence that says how to repeat the work.
    """

    id: str
    name: str
    description: str
    started: int
    pid: int
    born: float
    step: str = ""
    fraction: float = 0.0
    failed: str | None = None
    machine: str = ""
    again: str = "Build the image again."

    def failure(self, quiet: float = 0.0) -> str | None:
        """Why it failed; None while its process lives. ``quiet`` is for how many seconds it has said nothing."""
        if self.failed is not None:
            return self.failed
        if self.machine and self.machine != os.uname().nodename:
            if quiet > BUILD_SILENT:
                return f"The build on {self.machine} has said nothing for {quiet / 3600:.0f} h. {self.again}"
            return None
        if born(self.pid) != self.born:
            return f"The build ended half-way: its process {self.pid} is gone. {self.again}"
        return None


def read_state(path: Path) -> tuple[BuildState | None, float]:
    """Build state, with the seconds since it was written.

    A file that cannot be read says nothing: the next build replaces it.
    """
    try:
        quiet = time.time() - path.stat().st_mtime
        return msgspec.json.decode(path.read_bytes(), type=BuildState), quiet
    except (FileNotFoundError, msgspec.MsgspecError):
        return None, 0.0


def born(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
