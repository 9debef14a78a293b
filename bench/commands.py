"""``python -m bench commands``: how many commands a second go the whole way, and how long one takes.

A command is a boot or a destroy of an empty desktop (a simulated guest), asked for over
HTTP by as many people as there are clients, each of whom waits for its outcome on their
live events before the next: portal, database, endpoint, broker, cluster, host and all the way
back, with every commit on disk. The floor is the same database alone: one row written,
leased and acknowledged, each with a commit of its own.
"""

import asyncio
import hashlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit

import asyncpg
import psutil
import uuid_utils
from sqlalchemy import URL, BigInteger, Column, MetaData, String, Table, func, insert, select, update
from sqlalchemy.schema import CreateTable
from tests.rigs.server_processes import DatabaseServer, MariaServer, PostgresServer

from bench.http_client import Client
from bench.instance import Measured, running
from pupitre.config import DatabaseName, DatabaseRole, Settings
from pupitre.domain.command import FINAL_STATES
from pupitre.domain.people.access import Role, User
from pupitre.errors import SetupError, Unavailable
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.schema import audit, commands, journal
from pupitre.store.sql.engine import Database, open_database

IMAGE = "tiny"
PATIENCE = 30.0
"""Seconds until an outcome counts as lost."""
WARM_UP, IDLE_ROUNDS = 5, 100
"""Boots and destroys, one after the other, while nothing else happens: at first, and then those that count."""
SERVERS: dict[str, type[DatabaseServer]] = {"postgresql": PostgresServer, "mariadb": MariaServer}
DATABASES = (*SERVERS, "sqlite")


class _Figures(TypedDict):
    rate_per_s: float
    p50_ms: float
    p95_ms: float
    idle_p95_ms: float
    legs_ms: dict[str, float]
    cpu_ms: dict[str, float]
    lost: int
    doubled: int


class Found(_Figures):
    """Times in ms; ``cpu_ms`` is each process's for one command.

    ``legs_ms`` is the median time in each part of the way, under load, and alone (``idle_…``).
    """

    database: str


@dataclass(slots=True)
class _Took:
    """One command as its client saw it: when it asked, was answered 202 and saw the outcome (seconds)."""

    id: str
    asked: float
    answered: float
    seen: float


class _Person:
    """Asks for one thing after the other, and waits for each outcome."""

    def __init__(self, address: tuple[str, int], token: str) -> None:
        self._asks = Client(*address, token)
        self._hears = Client(*address, token)
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._ended: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self.took: list[_Took] = []
        self.accepted: list[str] = []

    async def begin(self) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._listen(ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
        if not waiting.done():
            raise Unavailable("The portal's live events did not begin.")

    async def _listen(self, ready: asyncio.Event) -> None:
        async for name, data in self._hears.events():
            if name == "ready":
                ready.set()
            elif name == "command" and data["state"] in FINAL_STATES:
                if data["error"]:
                    raise Unavailable(f"A command failed: {data['error']['reason']}")
                now = time.perf_counter()
                self._ended[data["id"]] = now
                if future := self._waiting.pop(data["id"], None):
                    future.set_result(now)

    async def round(self) -> None:
        """Boot a desktop, and destroy it."""
        started = await self._command("POST", "/api/v1/desktops", {"image": IMAGE})
        await self._command("DELETE", f"/api/v1/desktops/{started['desktop']}")

    async def _command(self, method: str, path: str, body: object = None) -> Any:
        begun = time.perf_counter()
        status, answer = await self._asks.ask(method, path, body)
        answered = time.perf_counter()
        if status != 202:
            raise Unavailable(f"{method} {path} was answered {status}: {answer}")
        command = answer["command"]
        self.accepted.append(command)
        if (seen := self._ended.pop(command, None)) is None:
            self._waiting[command] = asyncio.get_running_loop().create_future()
            async with timeout(PATIENCE):
                seen = await self._waiting[command]
            self._ended.pop(command, None)
        self.took.append(_Took(command, begun, answered, seen))
        return answer

    async def end(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._asks.close()
        await self._hears.close()


def measure(database: str, clients: int, seconds: float) -> Found:
    """Raises `SetupError` when the database's package is missing, `Unavailable` when a command fails."""
    with ExitStack() as stack:
        server, prepare = _prepare(stack, database)
        settings = {
            "hypervisor": "simulated://prompt",
            "host_memory_mib": str(1 << 20),
            "vcpu_overcommit": "100000",
            "student_desktops": "100",
            "log_level": "warning",
        }
        measured = stack.enter_context(running(prepare, **settings))
        os.environ["PUPITRE_HOME"] = str(measured.home)
        here = Settings(home=measured.home)
        found = asyncio.run(_measure(measured, server, here, clients, seconds))
    return Found(database=database, **found)


def floor(database: str, clients: int, seconds: float) -> float:
    """Rows a second that the database alone writes, leases and acknowledges, each with its own commit."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="pupitre-bench-") as folder:
        environment = dict(os.environ) | {"PUPITRE_HOME": folder}
        _, prepare = _prepare(stack, database)
        prepare(environment)
        if database == "sqlite":
            _create(environment)
        opened = open_database(Settings(home=Path(folder)), "owner", "commands")
        return asyncio.run(_floor(opened, clients, seconds))


def _prepare(stack: ExitStack, database: str) -> tuple[DatabaseServer | None, Callable[[dict[str, str]], None]]:
    """The database's server, started for as long as ``stack`` is open, and what makes the databases in it."""
    if database == "sqlite":
        return None, lambda _: None
    if database not in SERVERS:
        raise SetupError(
            f"There is no database {database!r} to measure.", f"Choose one of: {', '.join(DATABASES)}, all."
        )
    server = stack.enter_context(SERVERS[database]())
    known = server.url
    url = URL.create(known.drivername, known.username, host=known.host, port=known.port).render_as_string()
    password = {"PUPITRE_DATABASE_PASSWORD": str(server.url.password)}
    return server, lambda environment: _create(environment | password, "--url", url)


def _create(environment: dict[str, str], *options: str) -> None:
    command = [sys.executable, "-m", "pupitre", "db", "create", *options]
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)


async def _measure(
    measured: Measured, server: DatabaseServer | None, settings: Settings, clients: int, seconds: float
) -> "_Figures":
    split = urlsplit(measured.url)
    address = (str(split.hostname), int(split.port or 80))
    people = [_Person(address, token) for token in await _tokens(settings, clients)]
    try:
        first = people[0]
        await first.begin()
        for _ in range(WARM_UP):
            await first.round()
        first.took.clear()
        for _ in range(IDLE_ROUNDS):
            await first.round()
        idle, first.took = first.took, []
        await asyncio.gather(*(person.begin() for person in people[1:]))
        begun, spent = time.perf_counter(), _spent(measured, server)
        await asyncio.gather(*(_until(person, begun + seconds) for person in people))
        took = [one for person in people for one in person.took]
        span = max(one.seen for one in took) - begun
        costs = {name: seconds - spent.get(name, 0.0) for name, seconds in _spent(measured, server).items()}
    finally:
        await asyncio.gather(*(person.end() for person in people))
    ids = [command for person in people for command in person.accepted]
    lost, doubled = await _judge(settings, ids)
    loaded, alone = await _legs(settings, took), await _legs(settings, idle)
    durations = [(one.seen - one.asked) * 1000 for one in took]
    return _Figures(
        rate_per_s=round(len(took) / span, 1),
        p50_ms=round(statistics.median(durations), 1),
        p95_ms=_p95(durations),
        idle_p95_ms=_p95([(one.seen - one.asked) * 1000 for one in idle]),
        legs_ms=loaded | {f"idle_{name}": value for name, value in alone.items()},
        cpu_ms={name: round(cost * 1000 / len(took), 2) for name, cost in costs.items()},
        lost=lost,
        doubled=doubled,
    )


def _spent(measured: Measured, server: DatabaseServer | None) -> dict[str, float]:
    """CPU seconds so far, by process; ``clients`` is this one, ``database`` all of its server's."""
    names = measured.names()
    spent = {names[process.pid]: sum(process.cpu_times()[:2]) for process in measured.family() if process.pid in names}
    if server:
        first = psutil.Process(server.pid())
        spent["database"] = sum(sum(one.cpu_times()[:2]) for one in (first, *first.children(recursive=True)))
    return spent | {"clients": sum(psutil.Process().cpu_times()[:2])}


async def _until(person: _Person, end: float) -> None:
    while time.perf_counter() < end:
        await person.round()


async def _tokens(settings: Settings, count: int) -> list[str]:
    """Accounts of their own, signed in."""
    database = open_database(settings, "portal", "accounts")
    accounts, tokens = Accounts(database), []
    try:
        for number in range(count):
            user = User(str(uuid_utils.uuid7()), f"bench-{number}", Role.STUDENT)
            await accounts.add_user(user, "nobody signs in with this", now=now_ms())
            token = secrets.token_urlsafe(32)
            tokens.append(token)
            digest = hashlib.sha256(token.encode()).hexdigest()
            until = now_ms() + 3_600_000
            await accounts.open_session(digest, user.id, SessionKind.BEARER, now=now_ms(), expires=until)
    finally:
        await database.close()
    return tokens


async def _judge(settings: Settings, ids: list[str]) -> tuple[int, int]:
    """Commands that were taken and have no outcome, and those that have more than one."""
    outcomes: dict[str, int] = dict.fromkeys(ids, 0)
    async with _opened(settings, "owner", "commands") as database:
        for some in _parts(ids):
            async with database.read() as connection:
                query = select(audit.c.command, func.count()).where(audit.c.command.in_(some), audit.c.outcome != "")
                outcomes |= {row[0]: row[1] for row in await connection.execute(query.group_by(audit.c.command))}
    return sum(not count for count in outcomes.values()), sum(count > 1 for count in outcomes.values())


async def _legs(settings: Settings, took: list[_Took]) -> dict[str, float]:
    """Median time in each part of the way, from the times that each part wrote down (whole ms)."""
    ids = [one.id for one in took]
    created: dict[str, int] = {}
    finished: dict[str, int] = {}
    accepted: dict[str, int] = {}
    async with _opened(settings, "owner", "commands") as database:
        for some in _parts(ids):
            async with database.read() as connection:
                for row in await connection.execute(select(commands).where(commands.c.id.in_(some))):
                    created[row.id], finished[row.id] = row.created, row.finished
    async with _opened(settings, "owner", "cluster") as database:
        for some in _parts(ids):
            async with database.read() as connection:
                for row in await connection.execute(select(journal).where(journal.c.id.in_(some))):
                    accepted[row.id] = row.accepted
    whole = [one for one in took if one.id in accepted and one.id in finished]
    way = {
        "portal": [(one.answered - one.asked) * 1000 for one in whole],
        "to_cluster": [float(accepted[one.id] - created[one.id]) for one in whole],
        "cluster_host_and_back": [float(finished[one.id] - accepted[one.id]) for one in whole],
        "whole": [(one.seen - one.asked) * 1000 for one in whole],
    }
    legs = {name: round(statistics.median(times), 1) for name, times in way.items() if times}
    if legs:
        legs["to_client"] = round(max(0.0, legs["whole"] - legs["to_cluster"] - legs["cluster_host_and_back"]), 1)
    return legs


@asynccontextmanager
async def _opened(settings: Settings, role: DatabaseRole, name: DatabaseName) -> AsyncIterator[Database]:
    database = open_database(settings, role, name)
    try:
        yield database
    finally:
        await database.close()


def _parts(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + 500] for start in range(0, len(ids), 500)]


def _p95(values: list[float]) -> float:
    return round(statistics.quantiles(values, n=20)[-1], 1)


async def _floor(database: Database, clients: int, seconds: float) -> float:
    """Floor: on PostgreSQL by its driver alone; elsewhere by our own statements."""
    async with database.write() as connection:
        await connection.execute(CreateTable(_FLOOR))
    count = 0

    async def one(once: Callable[[str], Awaitable[None]], end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            async with slots:
                await once(str(uuid_utils.uuid7()))
            count += 1

    async def by_statements(id: str) -> None:
        async with database.write() as connection:
            await connection.execute(insert(_FLOOR).values(id=id, state=0))
        for state in (1, 2):
            async with database.write() as connection:
                await connection.execute(update(_FLOOR).where(_FLOOR.c.id == id).values(state=state))

    slots = asyncio.Semaphore(16 if database.kind == "postgresql" else 4)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        once = by_statements
        if database.kind == "postgresql":
            plain = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
            pool = await stack.enter_async_context(asyncpg.create_pool(plain, min_size=16, max_size=16))

            async def by_driver(id: str) -> None:
                async with pool.acquire() as connection:
                    await connection.execute("INSERT INTO bench_floor VALUES ($1, 0)", id)
                    for state in (1, 2):
                        await connection.execute("UPDATE bench_floor SET state = $2 WHERE id = $1", id, state)

            once = by_driver
        begun = time.perf_counter()
        await asyncio.gather(*(one(once, begun + seconds) for _ in range(clients)))
        return round(count / (time.perf_counter() - begun), 1)


_FLOOR = Table("bench_floor", MetaData(), Column("id", String(36), primary_key=True), Column("state", BigInteger))
