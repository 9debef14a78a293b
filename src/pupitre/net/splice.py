"""Two connections joined into one: what arrives at one end leaves at the other, with back-pressure.

An `StreamEnd` is one connection. Before the ends are joined it can be read line by line,
for a greeting; afterwards every byte passes in the callback that brought it. An end
that cannot write stops its peer from reading, so a slow reader costs the write
buffer of one end and the read buffer of the other (under 1 MB together), and one
turn of the event loop carries at most one such buffer per connection.
"""

import asyncio
import ctypes
import socket
from typing import cast

from pupitre.errors import MessageError
from pupitre.net.limits import HIGH_WATER, raise_descriptors
from pupitre.net.listener import Slot
from pupitre.timings import LINGER

EARLY = 64 << 10
"""Bytes kept from before the ends are joined; more stay with the kernel."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


class StreamEnd(asyncio.Protocol):
    """One end of a splice. Subclasses may translate what passes (`send`, `data_received`)."""

    transport: asyncio.Transport
    slot: Slot | None = None
    """Its place at the port where it came in."""

    def __init__(self) -> None:
        self.peer: StreamEnd | None = None
        self.lost = False
        self.gone = asyncio.Event()
        self._error: Exception | None = None
        self._early = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        read_ahead = getattr(self.transport, "set_read_buffer_limits", None)
        if read_ahead is not None:  # only TLS reads ahead
            read_ahead(high=HIGH_WATER)
        _notice_dead_peer(self.transport)
        if self.slot is not None:
            self.slot.attach(self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self.peer.send(data)
            return
        self._early += data
        if len(self._early) > EARLY:
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.gone.set()
        if self.slot is not None:
            self.slot.leave()
        self._error = error
        if self._linger is not None:
            self._linger.cancel()
        if self.peer is not None:
            self.peer.finish(error)
        self._wake()

    def eof_received(self) -> None:
        """Half a connection is none: the transport closes once what waits is written, in `LINGER` seconds at most."""
        if self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER, self.transport.abort)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.hold()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.release()

    def hold(self) -> None:
        """Read no more: the peer has no room."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def release(self) -> None:
        """Read on."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def send(self, data: bytes) -> None:
        """Write ``data``, which came from the peer."""
        self.transport.write(data)

    def finish(self, error: Exception | None = None) -> None:
        """The peer is gone: write what is still here, then close, within `LINGER` seconds."""
        if not self.lost and self._linger is None:
            self.transport.close()
            self._linger = asyncio.get_running_loop().call_later(LINGER, self.transport.abort)

    async def read_line(self, limit: int) -> bytes:
        """The next line, without its end. Raises `MessageError` when it is too long, `OSError` when the link ends."""
        while (end := self._early.find(b"\n")) < 0:
            if len(self._early) > limit:
                break
            await self._more()
        if not 0 <= end <= limit:
            raise MessageError(f"The first line is longer than {limit} bytes.")
        return self._take(end + 1)[:-1]

    async def read_exactly(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises `OSError` when the link ends before."""
        parts: list[bytes] = []
        while size > len(self._early):
            size -= len(self._early)
            parts.append(self._take(len(self._early)))
            await self._more()
        return b"".join([*parts, self._take(size)])

    def _take(self, size: int) -> bytes:
        taken = bytes(self._early[:size])
        del self._early[:size]
        return taken

    async def _more(self) -> None:
        if self.lost:
            raise ConnectionResetError("The other side closed the connection.") from self._error
        self.release()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _join(self, peer: "StreamEnd") -> None:
        self.peer = peer
        early = self._take(len(self._early))
        if early:
            self.data_received(early)


def join(one: StreamEnd, other: StreamEnd) -> None:
    """Pass on what has arrived, and from now on whatever arrives, until one end closes."""
    for end, peer in ((one, other), (other, one)):
        end.release()
        end._join(peer)
    for end, peer in ((one, other), (other, one)):
        if end.lost:
            peer.finish(end._error)


def prepare_process() -> None:
    """Fit this process for many and for fast splices; call it once, before the event loop.

    Every splice takes two descriptors: the soft limit is raised to the hard one. And
    glibc is told to keep freed buffers of up to 4 MB (mallopt(3)): mapping and
    clearing them anew for each read was two thirds of the cost of a stream.
    """
    raise_descriptors()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc only
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 16 << 20)


def _notice_dead_peer(transport: asyncio.Transport) -> None:
    """A peer that vanished without a word is found out by TCP within about a minute."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        for option, value in (
            (socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 4),
            (socket.TCP_USER_TIMEOUT, 60_000),
        ):  # fmt: skip
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
