"""``python -m bench idle``: what a Pupitre costs while nobody uses it."""

import time
from typing import TypedDict

import psutil

from bench.instance import Measured, running

QUIET = 0.05
"""Part of a core under which the start is over."""
QUIET_LIMIT = 30.0


class Idle(TypedDict):
    """``rss_mb`` counts a shared page once for each process, ``pss_mb`` once in all. MB are 1024² bytes."""

    cpu_cores: float
    rss_mb: float
    pss_mb: float
    processes: int
    by_process: dict[str, dict[str, float]]


def measure(seconds: float) -> Idle:
    """Cost of all processes of a private instance without desktops."""
    with running() as instance:
        _settle(instance)
        family, names = instance.family(), instance.names()
        before = {process: _cpu(process) for process in family}
        time.sleep(seconds)
        spent = {process: _cpu(process) - before[process] for process in family}
        memory = {process: process.memory_full_info() for process in family}
    return Idle(
        cpu_cores=round(sum(spent.values()) / seconds, 4),
        rss_mb=round(sum(info.rss for info in memory.values()) / 2**20, 1),
        pss_mb=round(sum(info.pss for info in memory.values()) / 2**20, 1),
        processes=len(family),
        by_process={
            names.get(process.pid, "up"): {
                "cpu_cores": round(spent[process] / seconds, 4),
                "rss_mb": round(memory[process].rss / 2**20, 1),
            }
            for process in family
        },
    )


def _settle(instance: Measured) -> None:
    """Wait for a second in which next to nothing happens."""
    end = time.monotonic() + QUIET_LIMIT
    while time.monotonic() < end:
        before = sum(map(_cpu, instance.family()))
        time.sleep(1)
        if sum(map(_cpu, instance.family())) - before < QUIET:
            return


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
