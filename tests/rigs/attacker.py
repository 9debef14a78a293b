"""What an attack on a port needs: a web process with limits that are soon reached, raw sockets, and its memory."""

import contextlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pupitre.up.processes.ports import free_port

MIB = 1 << 20
PATIENCE = 10.0
"""Seconds for an answer of a busy machine."""


@dataclass
class Web:
    """A web process of its own. Ports of 127.0.0.1."""

    port: int
    ops: int
    process: psutil.Process
    token: str

    def says(self, path: str = "/healthz") -> int:
        """The status that its ops port answers to who knows the token."""
        return status(self.ops, path, self.token)

    def memory(self) -> int:
        return int(self.process.memory_info().rss)

    def connections(self) -> int:
        """Connections that the process has on its port."""
        return sum(c.status != psutil.CONN_LISTEN for c in self.process.net_connections() if c.laddr.port == self.port)


@contextmanager
def web_process(
    environment: Mapping[str, str], log: Path, *, files: int | None = None, **settings: object
) -> Iterator[Web]:
    """`pupitre web` with ``settings`` and at most so many open ``files``."""
    ports = (free_port(), free_port())
    changed = {"portal_port": ports[0], "ops_port": ports[1], **settings}

    def limit_files() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pupitre", "web"],
            env={**environment, **{f"PUPITRE_{name.upper()}": str(value) for name, value in changed.items()}},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=limit_files,
        )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while status(ports[0]) != 200:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
        token = (Path(environment["PUPITRE_HOME"]) / "ops.token").read_text()
        yield Web(*ports, psutil.Process(process.pid), token)
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


@contextmanager
def many_descriptors() -> Iterator[None]:
    """As many descriptors for this process as it may have; what it starts afterwards gets as few as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dial(port: int, *, send_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if send_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(("127.0.0.1", port))
    except OSError:
        connection.close()
        raise
    return connection


def queued(port: int, connection: socket.socket) -> int:
    """Bytes that the kernel keeps at the server's end of the connection, sent and not read or received and not read."""
    ends = f":{port:04X}", f":{connection.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (local[8:], remote[8:]) == ends:
            return sum(int(queue, 16) for queue in queues.split(":"))
    return 0


def request(path: str = "/healthz", *, method: str = "GET", headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode()


def status(port: int, path: str = "/healthz", token: str = "none") -> int:
    """The status of one request on a connection of its own; 0 when there is no answer."""
    try:
        with dial(port) as connection:
            connection.sendall(request(path, headers={"Connection": "close", "Authorization": f"Bearer {token}"}))
            return answer(connection)
    except OSError:
        return 0


def answer(connection: socket.socket) -> int:
    """The status of the next answer; 0 when the connection ends, or is reset, without one."""
    got = b""
    try:
        while b"\r\n" not in got:
            part = connection.recv(4096)
            if not part:
                return 0
            got += part
    except ConnectionError:
        return 0
    return int(got.split()[1])


def is_closed(connection: socket.socket, within: float = PATIENCE) -> bool:
    """Whether the other side ends the connection in time, whatever it still sends."""
    end = time.monotonic() + within
    try:
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


def push(connection: socket.socket, data: bytes, most: int, patience: float = 1.0) -> int:
    """Send ``data`` again and again, reading nothing, until nobody takes it for so long; how many bytes were taken."""
    view, sent, at = memoryview(data), 0, 0
    connection.settimeout(patience)
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < most:
            taken = connection.send(view[at:])
            sent += taken
            at = (at + taken) % len(data)
    return sent


def cost(memory: Callable[[], int], attack: Callable[[], object], times: int = 4) -> float:
    """MiB by which each of so many attacks makes a process grow; the first one makes the room that all share."""
    attack()
    before = memory()
    for _ in range(times):
        attack()
    return (memory() - before) / times / MIB
