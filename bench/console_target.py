"""Target behind both gateways in the console benchmark: one TCP server, and a host's console port before it.

A connection first says what it wants in nine bytes: ``S`` (source: send that many
bytes), ``K`` (sink: read that many, then send one) or ``E`` (echo), and a number.
"""

import asyncio
import os
import socket
import struct
import sys

import uvloop

from pupitre import config
from pupitre.host.console.tickets import ConsoleServer
from pupitre.net.splice import StreamEnd, prepare_process
from pupitre.pki import issuing
from pupitre.runtime.log import set_up_logging

ORDER = struct.Struct("!cQ")
CHUNK = os.urandom(128 << 10)


class Target(StreamEnd):
    """Source, sink or echo, at the client's choice."""

    def __init__(self) -> None:
        super().__init__()
        self._kind = b""
        self._left = 0
        self._paused = False

    def data_received(self, data: bytes) -> None:
        if not self._kind:
            self._kind, self._left = ORDER.unpack_from(data)
            data = data[ORDER.size :]
            if self._kind == b"S":
                self._pour()
        if self._kind == b"E" and data:
            self.transport.write(data)
        elif self._kind == b"K" and self._left > 0:
            self._left -= len(data)
            if self._left <= 0:
                self.transport.write(b"!")

    def _pour(self) -> None:
        while self._left > 0 and not self._paused and not self.lost:
            self.transport.write(CHUNK[: self._left])
            self._left -= len(CHUNK)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pour()


class TargetScreens:
    """Every desktop's screen is the target."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        return connection

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        return CHUNK


async def serve_target() -> None:
    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def serve_host(target: int) -> None:
    settings = config.load()
    set_up_logging(settings, "host")
    certificates = issuing.directory(settings, issuing.host_role("bench"))
    server = ConsoleServer("bench", certificates, TargetScreens(target), settings.home / "state")
    await server.start()
    print(server.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    prepare_process()
    if sys.argv[1] == "target":
        uvloop.run(serve_target())
    else:
        uvloop.run(serve_host(int(sys.argv[2])))
