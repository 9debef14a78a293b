"""The receiving end of sd_notify(3): a child says ``READY=1`` and ``STATUS=…`` on a datagram socket."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pupitre.runtime.unix_sockets import LONGEST

MAX_DATAGRAM = 4096


class Notifications:
    """One child's socket, open from ``__enter__`` to ``__exit__``. ``on_message`` hears each variable.

    ``address`` is what the child sends to: the path, or a shorter way to it through this process.
    """

    def __init__(self, path: Path, on_message: Callable[[str, str], None]) -> None:
        self.path = path
        self._on_message = on_message
        self._socket: socket.socket | None = None
        self._folder = -1

    @property
    def address(self) -> str:
        path = str(self.path)
        return path if len(os.fsencode(path)) <= LONGEST else f"/proc/{os.getpid()}/fd/{self._folder}/{self.path.name}"

    def __enter__(self) -> "Notifications":
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY)
        self._socket.bind(f"/proc/self/fd/{self._folder}/{self.path.name}")
        self.path.chmod(0o600)
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._read()  # a last word, said just before the end
            self._socket.close()
            self._socket = None
            os.close(self._folder)
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
