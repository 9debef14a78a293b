"""A listening port of the host whose callers have yet to show a ticket.

They are limited in time by whoever greets them, and in number here: at the limit the
oldest gives way, so that whoever reaches the port without a ticket keeps nobody out.
"""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable

import structlog

MAX_HANDSHAKES = 128
"""Connections that have not shown a good ticket yet."""
BACKLOG = 512

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Greet = Callable[[socket.socket], Awaitable[None]]
"""Owns the connection it is given. Calls `Door.admitted` once the caller may stay."""


class Door:
    """Listens on ``address``:``port`` between `open` and `close`; port 0 takes a free one. ``name`` is for the log."""

    def __init__(self, name: str, address: str, port: int, greet: Greet) -> None:
        self._name = name
        self._address = (address, port)
        self._greet = greet
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None] | None, None] = {}  # in order of arrival

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    async def open(self) -> None:
        """Listen. Raises `OSError` when the address or port is not to be had."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._listener = socket.create_server(self._address, family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts inherits it
        self._accepting = asyncio.create_task(self._accept(self._listener), name=self._name)

    async def close(self) -> None:
        """Close the port and every handshake; may be repeated."""
        if self._accepting is None or self._listener is None:
            return
        tasks, self._accepting = [self._accepting, *self._tasks], None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    def admitted(self) -> None:
        """The caller that the present task greets counts as a handshake no more."""
        self._handshakes.pop(asyncio.current_task(), None)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("a connection was not accepted", door=self._name, reason=error.strerror)
                self._drop_oldest()
                await asyncio.sleep(0.1)  # the kernel offers the same connection again at once
                continue
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self._drop_oldest()
            task = asyncio.ensure_future(self._greet(connection))
            self._tasks.add(task)
            self._handshakes[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._handshakes.pop(task, None)
        if not task.cancelled() and (fault := task.exception()):  # of ours, with one caller: seen, and no more
            log.error("a caller could not be greeted", door=self._name, exc_info=fault)

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._handshakes), None)
        if oldest is not None:
            del self._handshakes[oldest]
            oldest.cancel()
