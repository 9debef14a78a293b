"""Repeats the outage of a database in the middle of a start, under load, and counts what hung or failed.

``PYTHONPATH=. .venv/bin/python scripts/repeat_outages.py mariadb 200 --busy 3``: a room with broker, cluster,
endpoint and host, whose database server is killed and started again (`tests/unit/wire/test_reconnect.py`). SQLite has
no server: there the files are moved away and put back, so that nothing can be written or opened. What has not ended
within the limit is a hang: the script prints where every task waits, and ends.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.rigs.database_servers import KINDS, Servers, started
from tests.unit.wire.test_reconnect import (
    test_absent_database_server_ends_no_process as outage,
)

from pupitre.errors import SetupError

LIMIT = 180.0
"""Seconds for one repetition on a busy machine."""


class Files:
    """SQLite's files in the place of a server."""

    def __init__(self, folder: Path) -> None:
        self._db = folder / "db"

    def crash(self) -> None:
        for path in self._db.glob("*.sqlite"):
            path.rename(path.with_suffix(".away"))

    def start(self) -> None:
        for path in self._db.glob("*.away"):
            path.rename(path.with_suffix(".sqlite"))


def print_tasks() -> None:
    """Where every task of this loop waits, down to the future."""
    for task in asyncio.all_tasks():
        print(f"---- {task.get_name()}, cancelled {task.cancelling()} times")
        waits: Any = task.get_coro()
        while waits is not None:
            frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)
            print(f"    {frame.f_code.co_filename}:{frame.f_lineno}" if frame else f"    {waits!r}"[:200])
            waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    sys.stdout.flush()


async def repetition(folder: Path, server: Any, hung: Any) -> None:
    timer = asyncio.get_running_loop().call_later(LIMIT, hung)
    try:
        await outage(folder, server)
    finally:
        timer.cancel()


@contextlib.contextmanager
def load(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that take all the time they are given."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield busy
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("times", type=int)
    parser.add_argument("--busy", type=int, default=0, help="Processes that take all the time they are given.")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="pupitre-outages-"))
    counts: Counter[str] = Counter()
    try:
        with load(options.busy) as busy:
            while counts.total() < options.times:
                servers_folder = root / f"servers-{counts.total()}"
                servers_folder.mkdir()
                with started(servers_folder) as servers:
                    repeat(root, servers, busy, counts, options.kind, options.times)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"{options.kind}: {options.times} repetitions, 0 hung, {dict(counts)}")
    return 1 if counts["failed"] else 0


def repeat(
    root: Path, servers: Servers, busy: list[subprocess.Popen[bytes]], counts: Counter[str], kind: str, times: int
) -> None:
    """Up to ``times``, or until the server itself does not come back: then the next ones need a new server."""
    while counts.total() < times:
        number = counts.total() + 1
        folder = root / str(number)
        folder.mkdir()
        servers.place(folder, kind)
        server = SimpleNamespace(server=Files(folder)) if kind == "sqlite" else servers.get(kind)

        def hung(number: int = number) -> None:
            print_tasks()
            print(f"{kind}: repetition {number} hung", flush=True)
            servers.stop()
            for process in busy:
                process.kill()
            os._exit(3)

        begun = time.monotonic()
        try:
            asyncio.run(repetition(folder, server, hung))
            how = "well"
        except SetupError as error:
            print(str(error)[-1500:])
            how = "server did not come back"
        except Exception:  # noqa: BLE001 - counted, and the next repetition is made all the same
            traceback.print_exc(file=sys.stdout)
            how = "failed"
        counts[how] += 1
        print(f"{kind} {number}/{times}: {how}, {time.monotonic() - begun:.1f} s", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        if how != "well":
            return


if __name__ == "__main__":
    sys.exit(main())
