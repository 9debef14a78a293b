"""Fills an audit log with millions of lines on each database, and measures first page, searches and retention.

``PYTHONPATH=. .venv/bin/python scripts/measure_audit.py [--rows 2000000] [sqlite postgresql mariadb]``
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uuid_utils
from tests.rigs import databases
from tests.rigs.database_servers import KINDS, started

from pupitre.store.admin.prune import prune
from pupitre.store.audit import APPEND, AuditEntry, AuditLog, Wanted, audit_values
from pupitre.store.sql.engine import Database

GROUP = 5000
YEAR_MS = 365 * 24 * 3600 * 1000
START_MS = 1_760_000_000_000


def entry(number: int, rows: int, chooser: random.Random) -> AuditEntry:
    """One line of a school's two years. One in all, of long ago, is the needle."""
    at = START_MS + number * 2 * YEAR_MS // rows
    unique = uuid_utils.UUID(
        bytes=at.to_bytes(6) + b"\x70" + (number >> 8).to_bytes(3) + b"\x80" + chooser.randbytes(5)
    )
    user = chooser.randrange(800)
    return AuditEntry(
        at=at,
        actor=f"0190aaaa-0000-7000-8000-{user:012}",
        actor_name=f"student{user}",
        action=chooser.choice(("boot_desktop", "destroy_desktop", "sign_in", "sign_out")),
        subject=str(uuid_utils.uuid4()) if number != rows // 10 else "0190bbbb-0000-7000-8000-000000000001",
        origin=f"10.0.{user % 8}.{user % 250}",
        outcome=chooser.choice(("", "COMMAND_EXECUTED", "done", "refused")),
        detail="the needle" if number == rows // 10 else "",
        id=str(unique),
    )


async def fill(database: Database, rows: int) -> None:
    chooser = random.Random(1)
    for first in range(0, rows, GROUP):
        group = [audit_values(entry(number, rows, chooser)) for number in range(first, min(first + GROUP, rows))]
        async with database.write() as connection:
            await connection.execute(APPEND, group)


async def slowest(work: Callable[[], Awaitable[object]]) -> str:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        await work()
        times.append((time.perf_counter() - begun) * 1000)
    return f"median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms"


async def measure(folder: Path, kind: str, rows: int) -> None:
    async with databases.database(folder, "commands") as database:
        begun = time.perf_counter()
        await fill(database, rows)
        print(f"{kind}: {rows} lines in {time.perf_counter() - begun:.0f} s", flush=True)
        log = AuditLog(database)
        middle = START_MS + YEAR_MS
        for name, wanted in {
            "first page": Wanted(),
            "text that is common": Wanted(text="student7"),
            "text of one line, one look": Wanted(text="the needle"),
            "an id of long ago": Wanted(text="0190bbbb-0000-7000-8000-000000000001"),
            "a user": Wanted(actor="student7"),
            "a user who is nobody, one look": Wanted(actor="nobody"),
            "a text until a year ago": Wanted(text="student7", until=middle),
            "an action of one day": Wanted(action="sign_in", since=middle, until=middle + YEAR_MS // 365),
        }.items():
            print(f"{kind}: {name}: {await slowest(lambda wanted=wanted: log.look(wanted, limit=50))}", flush=True)
        looks, before, begun = 0, None, time.perf_counter()
        while True:
            found = await log.look(Wanted(text="the needle"), limit=50, before=before)
            looks, before = looks + 1, found.reached
            if before is None:
                break
        print(f"{kind}: the whole log for one line: {looks} looks, {time.perf_counter() - begun:.1f} s", flush=True)
        begun = time.perf_counter()
        pruned = await prune(database, audit_before=START_MS + YEAR_MS // 10, commands_before=0)
        took = time.perf_counter() - begun
        print(f"{kind}: {pruned.audit} lines taken away in {took:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--rows", type=int, default=2_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pupitre-audit-", dir="/var/tmp") as root:
        for kind in options.kinds:
            folder = Path(root, kind)
            (folder / "servers").mkdir(parents=True)
            with started(folder / "servers") as servers:
                servers.place(folder, kind)
                asyncio.run(measure(folder, kind, options.rows))


if __name__ == "__main__":
    main()
