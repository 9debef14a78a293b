"""A bell: "look again", rung between processes of one machine. It carries no data.

Each listener binds a datagram socket in the topic's folder; ringing sends one
empty datagram to every socket there. A ring may be lost only if nobody listened,
and a listener that starts looks first; so nothing needs to poll.
"""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class Bell:
    """``Bell(folder, topic).ring()`` wakes every `Listener` of the topic."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.folder = folder / topic

    def ring(self) -> None:
        if not self.folder.is_dir():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for path in self.folder.iterdir():
                try:
                    sender.sendto(b"!", str(path))
                except (ConnectionRefusedError, FileNotFoundError):
                    path.unlink(missing_ok=True)  # its process died
                except BlockingIOError:
                    pass  # its queue is full of rings: it will look again anyway

    def listen(self) -> "Listener":
        return Listener(self.folder)


class Listener:
    """An async context manager; `heard` waits for the next ring, folding many into one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{os.getpid()}-{id(self):x}"
        self._event = asyncio.Event()
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
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

    async def heard(self) -> None:
        await self._event.wait()
        self._event.clear()
