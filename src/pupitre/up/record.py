"""``run/processes.json``: who runs, for `pupitre status` and for people."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pupitre.up.processes.supervisor import ChildSupervisor


class Record:
    """Written whole at every change of a child's life."""

    def __init__(self, path: Path, origin: str) -> None:
        self._path = path
        self._origin = origin

    def write(self, supervisors: Sequence[ChildSupervisor]) -> None:
        document = {
            "pid": os.getpid(),
            "url": self._origin,
            "processes": [_describe(supervisor) for supervisor in supervisors],
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n")
        partial.rename(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _describe(supervisor: ChildSupervisor) -> dict[str, Any]:
    child = supervisor.child
    ops = child.ops if child else None
    return {
        "name": supervisor.spec.name,
        "pid": child.pid if child else None,
        "state": supervisor.life.state,
        "since": round(time.time() - (time.monotonic() - supervisor.life.since), 3),
        "restarts": supervisor.life.restarts,
        "ops": ops,
    }
