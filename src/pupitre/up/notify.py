"""The receiving end of sd_notify(3): a child says ``READY=1`` and ``STATUS=…`` on a datagram socket."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

MAX_DATAGRAM = 4096
MAX_PATH = 100
"""Bytes that fit the path of a Unix socket, with a little room (unix(7) allows 108)."""


class Notifications:
    """One child's socket, open from ``__enter__`` to ``__exit__``. ``on_message`` hears each variable."""

    def __init__(self, path: Path, on_message: Callable[[str, str], None]) -> None:
        self.path = path
        self._on_message = on_message
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Notifications":
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind(str(self.path))
        self.path.chmod(0o600)
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._socket:
                for name, value in parse(self._socket.recv(MAX_DATAGRAM)):
                    self._on_message(name, value)


def parse(datagram: bytes) -> list[tuple[str, str]]:
    """The variables of one datagram; what is no assignment is left out."""
    pairs = (line.partition("=") for line in datagram.decode(errors="replace").splitlines())
    return [(name, value) for name, equals, value in pairs if name and equals]
