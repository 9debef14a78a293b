"""The load of the console benchmark: plain WebSocket clients that cost little themselves."""

import asyncio
import base64
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from websockets.speedups import apply_mask

from bench.console_target import ORDER
from pupitre.runtime.timeouts import timeout

FRAME = 64 << 10
MASK = b"\x5a\xa5\x3c\xc3"
LIMIT = 10.0
"""Seconds after which an open, or a silent connection, counts as failed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway under load: where it listens, and the request of one more console."""

    port: int
    request: Callable[[], bytes]


def request(port: int, path: str, subprotocols: str) -> bytes:
    """An upgrade as a browser sends it."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {subprotocols}\r\n\r\n"
    ).encode()


def frame(payload: bytes) -> bytes:
    """One masked binary frame."""
    size = len(payload)
    head = (
        bytes((0x82, 0x80 | size))
        if size < 126
        else struct.pack("!BBH" if size < 1 << 16 else "!BBQ", 0x82, 0xFE if size < 1 << 16 else 0xFF, size)
    )
    return head + MASK + apply_mask(payload, MASK)


def open_one(peer: Peer, order: bytes) -> socket.socket:
    """A console that has been given ``order``. Raises `OSError`."""
    connection = socket.create_connection(("127.0.0.1", peer.port), timeout=LIMIT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(peer.request())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(4096)
        if not part:
            break
        answer += part
    if not answer.startswith(b"HTTP/1.1 101"):
        connection.close()
        raise ConnectionRefusedError(answer.partition(b"\r\n")[0].decode(errors="replace") or "no answer")
    connection.sendall(frame(order))
    return connection


def pull(peer: Peer, size: int) -> float:
    """Seconds to receive ``size`` bytes from the source."""
    with open_one(peer, ORDER.pack(b"S", size)) as connection:
        process_cluster = bytearray(1 << 20)
        begin = time.perf_counter()
        while size > 0:
            got = connection.recv_into(process_cluster)
            if not got:
                raise ConnectionResetError("the source dried up")
            size -= got
        return time.perf_counter() - begin


def push(peer: Peer, size: int) -> float:
    """Seconds until the sink has had ``size`` bytes."""
    piece = frame(os.urandom(FRAME)) * 4
    rounds = size // (4 * FRAME)
    with open_one(peer, ORDER.pack(b"K", rounds * 4 * FRAME)) as connection:
        begin = time.perf_counter()
        for _ in range(rounds):
            connection.sendall(piece)
        connection.settimeout(60)
        if not connection.recv(16):
            raise ConnectionResetError("the sink closed early")
        return time.perf_counter() - begin


def echo(peer: Peer, count: int) -> list[float]:
    """Seconds of each of ``count`` round trips of 64 bytes."""
    with open_one(peer, ORDER.pack(b"E", 0)) as connection:
        piece, times = frame(bytes(64)), []
        for _ in range(count):
            begin = time.perf_counter()
            connection.sendall(piece)
            got = 0
            while got < 66:
                part = connection.recv(4096)
                if not part:
                    raise ConnectionResetError("the echo fell silent")
                got += len(part)
            times.append(time.perf_counter() - begin)
        return times


def percentile(values: list[float], part: int) -> float:
    return statistics.quantiles(values, n=100)[part - 1]


async def open_rate(peer: Peer, count: int, at_once: int = 16) -> float:
    """Consoles opened per second, each proved by one echoed byte and closed."""
    requests = iter([peer.request() for _ in range(count)])
    greeting = frame(ORDER.pack(b"E", 0) + b"!")

    async def worker() -> None:
        for text in requests:
            reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
            writer.write(text)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 101"):
                raise ConnectionRefusedError(answer.partition(b"\r\n")[0].decode())
            writer.write(greeting)
            await reader.readexactly(3)
            writer.close()

    begin = time.perf_counter()
    async with timeout(60), asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return count / (time.perf_counter() - begin)


def hold(peer: Peer, count: int) -> list[socket.socket]:
    """Up to ``count`` open consoles, each proved by an echoed byte; fewer when the gateway takes no more."""
    held: list[socket.socket] = []
    for _ in range(count):
        try:
            connection = open_one(peer, ORDER.pack(b"E", 0) + b"!")
            if len(connection.recv(16)) < 3:
                break
        except OSError:
            break
        held.append(connection)
    return held
