"""``python -m bench crash``: what ``kill -9`` costs with 40 starts in flight.

Endpoint, cluster, host and broker are killed in turn, each at a random moment of a burst of starts, and
started again at once, as a supervisor does for the first death of a process. Then everything must be
as `tests.rigs.history` wants it: a start that was taken and came to nothing is lost, one that ran
twice is doubled, and what belongs to no desktop is an orphan.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TypedDict

from tests.rigs.history import Violation
from tests.rigs.process_cluster import BROKER, ProcessCluster, process_cluster

from pupitre.config import Settings, load
from pupitre.domain.command import Command, CommandState
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.images.store import ImageStore
from pupitre.store.admin import migrate

IN_FLIGHT = 40
START_TAKES = 0.5
"""Seconds of a simulated start, so that all starts of a burst are under way when somebody is killed."""
SIMULATED = f"simulated://slow:{START_TAKES}?disks"
HOST = "host-1"
VICTIMS = ("endpoint", "cluster", HOST, BROKER)
EMPTY = "empty"
"""An image without a system, which a simulated guest does not miss."""


class ReadyAgain(TypedDict):
    """Seconds from a kill until a start that was asked for right then has run, its own time included."""

    p50: float
    max: float


class Crash(TypedDict):
    kills: int
    commands: int
    in_flight: int
    lost: int
    doubled: int
    orphans: int
    ready_again_s: ReadyAgain
    seed: int


def measure(kills: int, *, hypervisor: str | None = None, image: str | None = None, seed: int | None = None) -> Crash:
    """``in_flight`` is the least number of starts under way at any kill. Raises `PupitreError`."""
    chosen = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    hypervisor, image = hypervisor or SIMULATED, image or EMPTY
    with tempfile.TemporaryDirectory(prefix="pupitre-bench-") as folder:
        return asyncio.run(_measure(Path(folder) / "home", kills, hypervisor, image, chosen))


async def _measure(home: Path, kills: int, hypervisor: str, image: str, seed: int) -> Crash:
    chooser = random.Random(seed)
    ready: list[float] = []
    in_flight: list[int] = []
    changes: dict[str, object] = {
        "hypervisor": hypervisor,
        "start_limit": IN_FLIGHT,
        "user_in_flight": 2 * IN_FLIGHT,
        "connection_grace": 10,
        "host_memory_mib": 1 << 20,
        "log_level": "warning",
    }
    prepare = _databases_and_image
    if image != EMPTY:
        changes["image_store"], prepare = load().images_dir, _databases
    async with process_cluster(home, [HOST], prepare, image, **changes) as pupitre:
        await pupitre.outcomes([await pupitre.boot()])
        for number in range(kills):
            victim = VICTIMS[number % len(VICTIMS)]
            under_way, took = await _round(pupitre, victim, chooser)
            in_flight.append(under_way)
            ready.append(took)
            told = f"{under_way} in flight, ready again after {took:5.2f} s"
            print(f"  kill {number + 1:3}: {victim:9} {told}", file=sys.stderr)
        wrong = await pupitre.settled()
        for violation in wrong:
            print(f"  {violation}", file=sys.stderr)
        return _verdict(wrong, pupitre, ready, min(in_flight), seed)


async def _round(pupitre: ProcessCluster, victim: str, chooser: random.Random) -> tuple[int, float]:
    """One burst, one kill, and everything away again: how many starts were under way, and the way back in seconds."""
    boots = list(await asyncio.gather(*(pupitre.boot() for _ in range(IN_FLIGHT))))
    await asyncio.sleep(chooser.uniform(0, START_TAKES * 0.6))
    under_way = sum(command.finished is None for command in await _now(pupitre, boots))
    killed = time.monotonic()
    await pupitre.processes[victim].kill()
    await pupitre.processes[victim].start(wait=False)
    probe = await pupitre.outcome(await pupitre.boot())
    took = time.monotonic() - killed
    ended = await pupitre.outcomes(boots)
    there = [boot for boot in (*ended, probe) if boot.state is CommandState.SUCCEEDED]
    await pupitre.outcomes([await pupitre.destroy(boot.desktop, user=boot.user) for boot in there])
    return under_way, took


async def _now(pupitre: ProcessCluster, commands: list[Command]) -> list[Command]:
    found = await asyncio.gather(*(pupitre.commands.get(command.id) for command in commands))
    return [command for command in found if command is not None]


def _verdict(wrong: list[Violation], pupitre: ProcessCluster, ready: list[float], in_flight: int, seed: int) -> Crash:
    sorts = Counter(violation.sort for violation in wrong)
    return Crash(
        kills=len(ready),
        commands=len(pupitre.answered),
        in_flight=in_flight,
        lost=sorts["lost"] + sorts["untrue"],
        doubled=sorts["doubled"],
        orphans=sorts["orphan"],
        ready_again_s=ReadyAgain(p50=round(statistics.median(ready), 2), max=round(max(ready), 2)),
        seed=seed,
    )


def _databases(settings: Settings) -> None:
    migrate.upgrade_all(settings)


def _databases_and_image(settings: Settings) -> None:
    _databases(settings)
    with ImageStore(settings.images_dir).build(EMPTY, "Empty", "") as build:
        disk = build.folder / "disk"
        disk.write_bytes(bytes(1 << 20))
        build.publish(ImageSpec(EMPTY, "disk", DiskFormat.RAW, memory_mib=64, vcpus=1), {"disk": disk})
