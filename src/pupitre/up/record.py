"""``run/processes.json``: who runs, for `pupitre status` and for people."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pupitre.up.processes.supervisor import Keeper


class Record:
    """Written whole at every change of a child's life."""

    def __init__(self, path: Path, origin: str) -> None:
        self._path = path
        self._origin = origin

    def write(self, keepers: Sequence[Keeper]) -> None:
        document = {"pid": os.getpid(), "url": self._origin, "processes": [_describe(keeper) for keeper in keepers]}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n")
        partial.rename(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _describe(keeper: Keeper) -> dict[str, Any]:
    child = keeper.child
    ops = child.ops if child else None
    return {
        "name": keeper.spec.name,
        "pid": child.pid if child else None,
        "state": keeper.life.state,
        "since": round(time.time() - (time.monotonic() - keeper.life.since), 3),
        "restarts": keeper.life.restarts,
        "ops": ops,
    }
