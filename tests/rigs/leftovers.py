"""Processes that a run of the tests leaves behind: found by a mark in their environment, named and ended."""

import contextlib
import os
import uuid

import psutil

MARK = "STARTED_BY"
GRACE = 5.0
"""Seconds for what is just ending."""


def set_mark() -> str:
    """The mark of this run; every process that its tests start inherits it."""
    os.environ[MARK] = uuid.uuid4().hex
    return os.environ[MARK]


def end(mark: str) -> list[str]:
    """Kill what still has ``mark``, but for this process; their numbers and command lines."""
    _, alive = psutil.wait_procs(list(_marked(mark)), timeout=GRACE)
    named = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            named.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE)
    return named


def _marked(mark: str) -> list[psutil.Process]:
    processes = psutil.process_iter(["pid", "environ", "cmdline"])
    return [
        process
        for process in processes
        if process.pid != os.getpid()
        and (process.info["environ"] or {}).get(MARK) == mark
        # The standard library's; it ends with the process that it serves.
        and "multiprocessing.resource_tracker" not in " ".join(process.info["cmdline"] or ())
    ]
