"""Log of simulated guests, which outlives their process: their starts and ends.

One line for each, written in one piece, so that a process killed at any moment leaves whole
lines only; a last line cut short by a full disk is left out. Nothing is ever rewritten: who
wants to know whether a guest ran, ran twice or runs still, reads it here.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EventKind = Literal["run", "end"]


@dataclass(frozen=True, slots=True)
class GuestLogEntry:
    kind: EventKind
    desktop: str
    boot: int


class SimulatedGuestLog:
    """One host's; a file that is not there is an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: EventKind, desktop: str, boot: int) -> None:
        """Raises `OSError`."""
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, f"{kind} {desktop} {boot}\n".encode())
        finally:
            os.close(file)

    def entries(self) -> Iterator[GuestLogEntry]:
        """Entries, oldest first."""
        if not self._path.exists():
            return
        for text in self._path.read_text().splitlines(keepends=True):
            match text.split():
                case ["run", desktop, boot] if text.endswith("\n"):
                    yield GuestLogEntry("run", desktop, int(boot))
                case ["end", desktop, boot] if text.endswith("\n"):
                    yield GuestLogEntry("end", desktop, int(boot))

    def running(self) -> dict[str, int]:
        """The guests that run, with their boot generations."""
        found: dict[str, int] = {}
        for entry in self.entries():
            if entry.kind == "run":
                found[entry.desktop] = entry.boot
            else:
                found.pop(entry.desktop, None)
        return found


def guest_log_path(host_dir: Path) -> Path:
    return host_dir / "guests.log"
