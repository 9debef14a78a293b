"""A listening port that is never full for good: where there is no room, the oldest that only waits gives way.

Each connection has a `Slot`. It waits until it has shown what it came for (a whole
request, a good ticket), and again while it is idle. At a limit the oldest waiting one is
dropped, first of the same address, so that whoever opens many connections and says
nothing keeps nobody out; where none waits, the new one is turned away at once.
"""

import asyncio
import contextlib
import errno
import functools
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from pupitre.net.limits import KERNEL_BUFFER, OPS_KEPT_BACK, Limits, descriptors
from pupitre.timings import ACCEPT_RETRY, TURNED_AWAY_LOG

BACKLOG = 2048
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.ENOMEM})

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Slot:
    """The place of one connection. ``drop`` ends it."""

    __slots__ = ("_crowd", "_peer", "address", "attached", "drop", "limits")

    def __init__(self, crowd: "Crowd", peer: "Peer", address: str, drop: Callable[[], object]) -> None:
        self._crowd: Crowd | None = crowd
        self._peer = peer
        self.address = address
        self.limits = crowd.limits
        self.drop = drop
        self.attached = False

    def attach(self, abort: Callable[[], object]) -> None:
        """A protocol has the connection: it ends by ``abort``, and the protocol calls `leave` when it is lost."""
        self.attached = True
        self.drop = abort

    def wait(self) -> None:
        """Something is waited for; of all that wait, this is now the newest. Idempotent."""
        if self._crowd is not None and self not in self._peer.waiting:
            self._crowd.waiting[self] = self._peer.waiting[self] = None

    def settle(self) -> None:
        """Note that what was waited for has come. Idempotent."""
        if self._crowd is not None:
            self._crowd.waiting.pop(self, None)
            self._peer.waiting.pop(self, None)

    def leave(self) -> None:
        """The connection is gone, or as good as gone. Idempotent."""
        if self._crowd is None:
            return
        self.settle()
        self._crowd.forget(self.address, self._peer)
        self._crowd = None


@dataclass(slots=True)
class Peer:
    """All connections of one address; those that wait with the oldest first."""

    open: int = 0
    waiting: dict[Slot, None] = field(default_factory=dict)


class Crowd:
    """The connections of one port."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.open = 0
        self.waiting: dict[Slot, None] = {}
        self._peers: dict[str, Peer] = {}

    def enter(self, address: str, descriptor: int, drop: Callable[[], object]) -> Slot | None:
        """A place for a new connection, which waits; None when there is none and nobody gives way."""
        limits = self.limits
        peer = self._peers.get(address) or Peer()
        if peer.open >= limits.per_address and not limits.is_proxy(address) and not _give_way(peer.waiting):
            return None
        full = self.open >= limits.connections or descriptor > limits.last_descriptor
        if full and not self.make_room():
            return None
        if descriptor > max(limits.last_descriptor, descriptors() - OPS_KEPT_BACK):
            return None  # those that gave way are not closed yet
        if len(self.waiting) >= limits.waiting:
            self.make_room()
        self._peers[address] = peer
        self.open += 1
        peer.open += 1
        slot = Slot(self, peer, address, drop)
        slot.wait()
        return slot

    def make_room(self) -> bool:
        """Drop the oldest that waits; False when none does."""
        return _give_way(self.waiting)

    def forget(self, address: str, peer: Peer) -> None:
        self.open -= 1
        peer.open -= 1
        if not peer.open:
            self._peers.pop(address, None)


def _give_way(waiting: dict[Slot, None]) -> bool:
    oldest = next(iter(waiting), None)
    if oldest is None:
        return False
    oldest.leave()
    oldest.drop()
    return True


Greet = Callable[[socket.socket, Slot], Coroutine[Any, Any, None]]
"""Owns the connection that it is given. Ends when the connection is attached to a protocol, or over."""


class Listener:
    """Accepts on ``listening`` between `start` and `close`. ``name`` is for the log."""

    def __init__(
        self, name: str, listening: socket.socket, limits: Limits, greet: Greet, *, refusal: bytes = b""
    ) -> None:
        """``refusal`` is what a caller is told for whom there is no room, where that can be said at once."""
        self.crowd = Crowd(limits)
        self._name = name
        self._listening = listening
        self._greet = greet
        self._refusal = refusal
        self._accepting: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()
        self._turned_away = 0
        self._said = float("-inf")

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listening.getsockname()[1])

    def start(self) -> None:
        self._accepting = asyncio.create_task(self._accept(), name=self._name)

    def close(self) -> None:
        """Close the port, and whatever has not been attached to a protocol; may be repeated."""
        for task in (self._accepting, *self._greetings):
            if task is not None:
                task.cancel()

    async def wait_closed(self) -> None:
        """Wait until that is done."""
        tasks = [task for task in (self._accepting, *self._greetings) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                log.warning("connection_not_accepted", port=self._name, reason=error.strerror)
                self.crowd.make_room()
                await asyncio.sleep(ACCEPT_RETRY)
                continue
            self._let_in(connection, str(address[0]) if isinstance(address, tuple) else "")
            await asyncio.sleep(0)  # connections that gave way are closed before the next one is taken

    def _let_in(self, connection: socket.socket, address: str) -> None:
        slot = self.crowd.enter(address, connection.fileno(), connection.close)
        if slot is None:
            self._turn_away(connection, address)
            return
        task = asyncio.create_task(self._greet(connection, slot))
        slot.drop = task.cancel
        self._greetings.add(task)
        task.add_done_callback(functools.partial(self._greeted, connection, slot))

    def _greeted(self, connection: socket.socket, slot: Slot, task: asyncio.Task[None]) -> None:
        self._greetings.discard(task)
        if not slot.attached:
            slot.leave()
            connection.close()  # a task that is cancelled before its first step runs no line of its own
        if not task.cancelled() and (fault := task.exception()):  # of ours, with one caller: seen, and no more
            log.error("connection_failed_unexpectedly", port=self._name, exc_info=fault)

    def _turn_away(self, connection: socket.socket, address: str) -> None:
        with contextlib.suppress(OSError):
            if self._refusal:
                connection.send(self._refusal)
        connection.close()
        self._turned_away += 1
        now = time.monotonic()
        if now - self._said > TURNED_AWAY_LOG:
            log.warning(
                "connections_refused_port_full", port=self._name, callers=self._turned_away,
                open=self.crowd.open, last=address,
            )  # fmt: skip
            self._said, self._turned_away = now, 0


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    # asyncio sets this only on sockets made with proto=IPPROTO_TCP; without it each answer waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts inherits it
    # By themselves they grow to 4 and 6 MB for whoever leaves unread what was sent.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    return listening
