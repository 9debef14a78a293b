"""``python -m bench console``: our gateway and websockify side by side, over loopback, before the same target.

Ours does more: it checks a signed ticket at each open, and speaks TLS with
certificates on both sides to the host. websockify speaks plain TCP to the target.
CPU and memory are those of the gateway's processes alone. PSS counts a page that
forked processes share once.
"""

import asyncio
import json as json_format
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import uvloop

from bench import console_load as load
from bench.console_load import Peer
from pupitre.config import Settings
from pupitre.domain.ticket import Purpose, Ticket, sign
from pupitre.net.splice import prepare_process
from pupitre.pki import issuing
from pupitre.runtime.timeouts import timeout
from pupitre.up.processes.ports import free_port

GIB = 1 << 30
SIZE = GIB
OPENS = 1000
IDLE = 2000
ECHOES = 5000

Figures = dict[str, float]


def run(json: bool) -> None:
    """Measure both and print; with ``json`` the last line is one JSON object. Takes one to three minutes."""
    prepare_process()
    with tempfile.TemporaryDirectory(prefix="pupitre-bench-") as folder, _target() as target:
        with _ours(Path(folder), target) as (peer, process):
            ours = _measure("ours", peer, process)
        with _websockify(target) as (peer, process):
            websockify = _measure("websockify", peer, process)
    print(f"{'':24}{'ours':>12}{'websockify':>12}")
    for key in ours:
        print(f"{key:24}{ours[key]:>12}{websockify[key]:>12}")
    if json:
        print(json_format.dumps({"ours": ours, "websockify": websockify}))


def _measure(name: str, peer: Peer, process: psutil.Process) -> Figures:
    figures: Figures = {}
    for direction, move in (("down", load.pull), ("up", load.push)):
        print(f"{name}: {direction}, {SIZE // GIB} GiB …", file=sys.stderr)
        move(peer, 32 << 20)  # warm
        before = _cpu(process)
        seconds = move(peer, SIZE)
        spent = _settled(process) - before
        figures[f"{direction}_mb_per_s"] = round(SIZE / 1e6 / seconds)
        figures[f"{direction}_cpu_s_per_gb"] = round(spent / (SIZE / 1e9), 2)
    print(f"{name}: {OPENS} opens …", file=sys.stderr)
    uvloop.run(load.open_rate(peer, 50))
    figures["opens_per_s"] = round(uvloop.run(load.open_rate(peer, OPENS)))
    print(f"{name}: echo …", file=sys.stderr)
    times = load.echo(peer, ECHOES)
    figures["echo_p50_us"] = round(load.percentile(times, 50) * 1e6)
    figures["echo_p99_us"] = round(load.percentile(times, 99) * 1e6)
    print(f"{name}: up to {IDLE} idle connections …", file=sys.stderr)
    empty = _memory(process)
    held = load.hold(peer, IDLE)
    try:
        figures["max_connections"] = len(held)
        figures["kb_per_idle"] = round((_memory(process) - empty) / 1000 / max(1, len(held)), 1)
        times = load.echo(peer, ECHOES) if len(held) == IDLE else []
        figures["echo_p99_us_full"] = round(load.percentile(times, 99) * 1e6) if times else -1
    finally:
        for connection in held:
            connection.close()
    return figures


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    """CPU-seconds of the process and its children, those that have ended included."""
    total = 0.0
    for member in _family(process):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if member == process:
            total += times.children_user + times.children_system
    return total


def _settled(process: psutil.Process) -> float:
    """`_cpu` once the children of a forking gateway have been reaped, whose time would be missing otherwise."""
    deadline = time.monotonic() + 10
    while process.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return _cpu(process)


def _memory(process: psutil.Process) -> int:
    total = 0
    for member in _family(process):
        try:
            total += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def _process(arguments: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        family = _family(psutil.Process(process.pid)) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for member in family:
            if member.is_running():
                member.kill()
        if process.stdout:
            process.stdout.close()


@contextmanager
def _target() -> Iterator[int]:
    with _process([sys.executable, "-m", "bench.console_target", "target"]) as process:
        yield _announced(process)


def _announced(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@contextmanager
def _ours(home: Path, target: int) -> Iterator[tuple[Peer, psutil.Process]]:
    port = free_port()
    environment = {
        "PUPITRE_HOME": str(home),
        "PUPITRE_GATEWAY_PORT": str(port),
        "PUPITRE_PUBLIC_ORIGIN": f"http://127.0.0.1:{port}",
        "PUPITRE_LOG_LEVEL": "warning",
    }
    settings = Settings(home=home)
    for role in ("gateway", issuing.host_role("bench")):
        issuing.ensure_certificate(settings, role)
    key = issuing.ensure_ticket_key(settings)
    host = [sys.executable, "-m", "bench.console_target", "host", str(target)]
    with (
        _process(host, environment) as server,
        _process([sys.executable, "-m", "pupitre", "gateway"], environment) as gateway,
    ):
        console_port = _announced(server)

        def request() -> bytes:
            ident = uuid.uuid4().hex
            ticket = Ticket(
                id=ident, purpose=Purpose.CONSOLE, user="bench", desktop=ident, boot=1, host="bench",
                address="127.0.0.1", port=console_port, expires=time.time() + 60, bearer="", browser=False,
                until=time.time() + 3600,
            )  # fmt: skip
            return load.request(port, f"/gateway/v1/console/{ident}", f"binary, {sign(ticket, key)}")

        asyncio.run(_listening(port))
        yield Peer(port, request), psutil.Process(gateway.pid)


@contextmanager
def _websockify(target: int) -> Iterator[tuple[Peer, psutil.Process]]:
    port = free_port()
    program = str(Path(sys.executable).with_name("websockify"))
    with _process([program, f"127.0.0.1:{port}", f"127.0.0.1:{target}"]) as process:
        asyncio.run(_listening(port))
        yield Peer(port, lambda: load.request(port, "/websockify", "binary")), psutil.Process(process.pid)


async def _listening(port: int) -> None:
    async with timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


if __name__ == "__main__":
    run(json="--json" in sys.argv)
