"""``python -m bench status``: what one change of one desktop costs, however many desktops there are.

Real processes of cluster and endpoint over a real broker and real databases. The hosts
are this process: it reports one desktop's new state after the other, as an agent does, and
watches the status database as a portal does. What it costs here is not counted.
"""

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypedDict

import psutil
import uuid_utils
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pupitre.config import DatabaseName, Settings
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostFacts, HostState
from pupitre.domain.report import DesktopReport
from pupitre.errors import SetupError
from pupitre.net.ops_client import ask
from pupitre.pki import issuing
from pupitre.runtime.clock import now_ms
from pupitre.runtime.timeouts import timeout
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.state import PlacedDesktop
from pupitre.store.admin import migrate
from pupitre.store.cluster import ClusterStore
from pupitre.store.sql.engine import open_database
from pupitre.store.status import CHANGED, Status
from pupitre.up.processes.child import Child, ChildSpec
from pupitre.up.processes.children import program
from pupitre.up.processes.ports import free_port
from pupitre.up.processes.stream import LogStream
from pupitre.wire.broker import write_config
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import AnyMessage, Describe, Done, Heartbeat, Report
from pupitre.wire.subjects import Subjects

HOSTS = 10
WARM = 10
"""Changes before the clock runs."""
PATIENCE = 120.0
"""Seconds for each step of the preparation."""
OWNER = "0190aaaa-0000-7000-8000-000000000001"
MEMORY_MIB = 256
PUPITRE = (sys.executable, "-m", "pupitre")


class Found(TypedDict):
    """``rows_per_change`` are rows of ``status`` that endpoint and one portal read or write."""

    desktops: int
    cpu_ms_per_change: float
    rows_per_change: float
    lag_p95_ms: float


class _Host:
    """A host agent that has its desktops from a list and never starts one."""

    def __init__(self, settings: Settings, name: str, desktops: list[str]) -> None:
        self.name = name
        self.desktops = desktops
        self._subjects = Subjects(settings.cluster)
        self._reasons: dict[str, str] = {}
        self._number = 0
        role = issuing.host_role(name)
        tls = issuing.client_context(issuing.ensure_certificate(settings, role), role)
        self._broker = BrokerConnection(settings.nats_url, role, tls, registry=CollectorRegistry())
        self._heartbeat = settings.heartbeat

    @asynccontextmanager
    async def running(self) -> AsyncIterator["_Host"]:
        await self._broker.open()
        await self._broker.serve(self._subjects.orders(self.name), self._on_order)
        beat = asyncio.create_task(self._beat())
        try:
            yield self
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            await self._broker.close()

    async def report(self, desktop: str | None = None, reason: str = "") -> None:
        """Tell the cluster of one desktop, or of all."""
        if desktop:
            self._reasons[desktop] = reason
        report = self._report((desktop,) if desktop else self.desktops, full=desktop is None)
        await self._broker.request(self._subjects.reports(self.name), report, Done, timeout=10)

    def _report(self, desktops: "tuple[str, ...] | list[str]", *, full: bool) -> Report:
        self._number += 1
        seen = tuple(DesktopReport(id, 1, DesktopState.RUNNING, self._reasons.get(id)) for id in desktops)
        return Report(host=self.name, run="bench", number=self._number, full=full, port=1, desktops=seen)

    async def _on_order(self, message: AnyMessage) -> AnyMessage | None:
        return self._report(self.desktops, full=True) if isinstance(message, Describe) else Done()

    async def _beat(self) -> None:
        while True:
            beat = Heartbeat(host=self.name, run="bench", number=self._number)
            await self._broker.publish(self._subjects.heartbeats(self.name), beat)
            await asyncio.sleep(self._heartbeat)


class _Portal:
    """Reads what is new in ``status`` at each ring, and notes when each change was there."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self.rows = 0
        self.seen: dict[str, float] = {}
        self.running: set[str] = set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        version = 0
        async with self._status.database.listen(CHANGED) as listener:
            while True:
                changes = await self._status.changes(version)
                now, version = time.perf_counter(), changes.version
                self.rows += len(changes.rows.desktops) + len(changes.rows.copies)
                self.rows += len(changes.rows.hosts) + len(changes.links)
                for desktop in changes.rows.desktops:
                    self.running.add(desktop.id)
                    if desktop.reason:
                        self.seen.setdefault(desktop.reason, now)
                self._news.set()
                await listener.wait()

    async def until(self, many: int | None = None, change: str | None = None) -> None:
        """Wait until so many desktops, or this change, are there."""
        async with timeout(PATIENCE):
            while (many is not None and len(self.running) < many) or (change is not None and change not in self.seen):
                self._news.clear()
                await self._news.wait()


async def measure(desktops: int, changes: float, seconds: float) -> Found:
    """``changes`` each second, for so long. Raises `SetupError`."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pupitre-bench-")))
        settings = Settings(home=home, nats_url=f"tls://127.0.0.1:{free_port()}", log_level="warning")
        names = [f"bench-{number + 1}" for number in range(HOSTS)]
        ids = {name: [str(uuid_utils.uuid7()) for _ in range(desktops // HOSTS)] for name in names}
        await asyncio.to_thread(_prepare, settings, names)
        await _fill(settings, ids)
        children = await _processes(stack, settings)
        hosts = [await stack.enter_async_context(_Host(settings, name, ids[name]).running()) for name in names]
        status = Status(open_database(settings, "portal", "status", read_only=True))
        stack.push_async_callback(status.database.close)
        portal = _Portal(status)
        watching = asyncio.create_task(portal.run())
        stack.push_async_callback(_end, watching)
        begun = time.perf_counter()
        for host in hosts:
            await host.report()
        await portal.until(many=sum(map(len, ids.values())))
        print(f"  {desktops} desktops are there after {time.perf_counter() - begun:.1f} s", file=sys.stderr)
        await _change(hosts, portal, WARM, changes, "warm")
        cpu, rows = sum(map(_cpu, children)), _rows(children) + portal.rows
        lags = await _change(hosts, portal, max(1, int(changes * seconds)), changes, "change")
        spent = sum(map(_cpu, children)) - cpu
        rows = _rows(children) + portal.rows - rows
    return Found(
        desktops=desktops,
        cpu_ms_per_change=round(spent * 1000 / len(lags), 2),
        rows_per_change=round(rows / len(lags), 2),
        lag_p95_ms=round(statistics.quantiles([*lags, lags[-1]], n=20, method="inclusive")[18] * 1000, 1),
    )


async def _change(hosts: list[_Host], portal: _Portal, count: int, rate: float, name: str) -> list[float]:
    """``count`` changes of as many desktops chosen at random, and how long (s) each took to be in ``status``."""
    chosen = random.Random(count)
    begun = time.perf_counter()
    sent: dict[str, float] = {}
    for number in range(count):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        host = chosen.choice(hosts)
        reason = f"{name} {number}"
        sent[reason] = time.perf_counter()
        await host.report(chosen.choice(host.desktops), reason)
    for reason in sent:
        await portal.until(change=reason)
    return [portal.seen[reason] - at for reason, at in sent.items()]


def _prepare(settings: Settings, hosts: list[str]) -> None:
    names: tuple[DatabaseName, ...] = ("commands", "status", "cluster")
    for name in names:
        migrate.upgrade(name, settings.database_url(name))
    for role in ("nats", "endpoint", "cluster"):
        issuing.ensure_certificate(settings, role)
    port = int(settings.nats_url.rsplit(":", 1)[1])
    write_config(settings, port=port, hosts=hosts)
    settings.run_dir.mkdir(parents=True, exist_ok=True)


async def _fill(settings: Settings, ids: dict[str, list[str]]) -> None:
    """Hosts and their running desktops, as the cluster would know them after so many starts."""
    store = ClusterStore(open_database(settings, "cluster", "cluster"))
    now = now_ms()

    def fill(changes: Changes) -> None:
        for name, desktops in ids.items():
            facts = HostFacts(MEMORY_MIB * (len(desktops) + 1), 64, 1 << 20, "simulated://prompt", "none", "bench")
            changes.put_host(Host(name, HostState.READY, "127.0.0.1", 1, False, now, facts=facts))
            for id in desktops:
                seen = Desktop(id, OWNER, "plain", name, DesktopState.RUNNING, now, now, boot=1)
                changes.put_desktop(PlacedDesktop(seen, DesktopState.RUNNING, MEMORY_MIB, 1))

    try:
        await store.begin_epoch(now=now)
        await store.change(fill)
    finally:
        await store.close()


async def _processes(stack: AsyncExitStack, settings: Settings) -> list[Child]:
    """The broker, then cluster and endpoint, which are what is measured."""
    shared = {
        "PUPITRE_HOME": str(settings.home),
        "PUPITRE_NATS_URL": settings.nats_url,
        "PUPITRE_LOG_LEVEL": settings.log_level,
    }
    stream = LogStream(colours=False)
    found = []
    specs = [
        ChildSpec(
            "nats", (str(program("nats-server")), "-c", str(settings.home / "nats.conf")),
            stop_within=5, ready_line=b"Server is ready",
        ),
        ChildSpec("cluster", (*PUPITRE, "cluster"), shared),
        ChildSpec("endpoint", (*PUPITRE, "endpoint"), shared),
    ]  # fmt: skip
    quiet = LogStream((settings.home / "nats.log").open("wb"))
    for spec in specs:
        ready = asyncio.Event()
        out = quiet if spec.name == "nats" else stream
        child = await Child.start(spec, sockets=settings.run_dir, stream=out, on_ready=ready.set)
        stack.push_async_callback(child.stop, spec.stop_within)
        try:
            async with timeout(PATIENCE):
                await ready.wait()
        except TimeoutError as error:
            raise SetupError(f"The {spec.name} to be measured did not start.", "") from error
        found.append(child)
    return found[1:]


def _cpu(child: Child) -> float:
    times = psutil.Process(child.pid).cpu_times()
    return float(times.user + times.system)


def _rows(children: list[Child]) -> int:
    """Rows of ``status`` that the endpoint has read and written so far."""
    (endpoint,) = (child for child in children if child.spec.name == "endpoint")
    assert endpoint.ops
    families = text_string_to_metric_families(ask(Path(endpoint.ops), "/metrics").text)
    return int(
        sum(
            sample.value
            for family in families
            if family.name == "pupitre_status_rows"
            for sample in family.samples
            if sample.name.endswith("_total")
        )
    )


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
