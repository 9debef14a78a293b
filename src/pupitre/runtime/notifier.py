"""Notifier: a wake-up between processes of one machine. It carries no data.

Each listener binds a datagram socket in the topic's folder; to notify is to send one byte to every socket there.
A notification is lost only if nobody listens, and a listener that starts looks first; so nothing needs to poll.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from pupitre.runtime.unix_sockets import short

log = structlog.get_logger(__name__)


class Notifier:
    """``Notifier(folder, topic).notify()`` wakes every `Listener` of the topic."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.folder = folder / topic

    def notify(self) -> None:
        """Never raises: what it tells of is written already."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, short(self.folder) as folder:
            sender.setblocking(False)
            for name in _names(folder):
                try:
                    sender.sendto(b"!", f"{folder}/{name}")
                except (ConnectionRefusedError, FileNotFoundError):
                    with contextlib.suppress(OSError):
                        (self.folder / name).unlink()  # its process died
                except BlockingIOError:
                    pass  # its queue is full: it will look again anyway
                except OSError as error:
                    log.warning("listener_not_woken", socket=f"{self.folder}/{name}", error=str(error))

    def listen(self) -> "Listener":
        return Listener(self.folder)


class Listener:
    """An async context manager; `heard` waits for the next ring, folding many into one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Never a name twice: whoever sweeps a dead listener's socket must not hit a living one.
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(6)}"
        self._event = asyncio.Event()
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        with short(self._path.parent) as folder:
            self._socket.bind(f"{folder}/{self._path.name}")
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._socket:
                self._socket.recv(16)
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
