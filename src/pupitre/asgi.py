"""An ASGI application on a socket, by uvicorn, without uvicorn's clock: at rest it does nothing at all.

Signals belong to `ops.run_process`. Lifespans are run by the caller, so that what they
raise arrives there as it is.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pupitre.errors import SetupError

GRACE = 2
"""Seconds that open requests have to end once the server stops."""


class EventServer(uvicorn.Server):
    """uvicorn's server, which waits to be told to stop instead of looking ten times a second."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._told = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self._on_started()
        await self._told.wait()

    def stop(self) -> None:
        self._told.set()


async def serve(
    app: Any,
    listener: socket.socket,
    *,
    on_started: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    ws: Any = "none",
    **options: Any,
) -> None:
    """Serve until cancelled; then ``on_stop`` ends what is open for long, and the rest has `GRACE` seconds."""
    # The Date header would need the clock; who wants one adds it to each answer. Whose forwarded addresses count,
    # `middleware.Forwarded` decides: by default uvicorn believes whoever runs on this machine.
    config = uvicorn.Config(
        app, ws=ws, http="httptools", lifespan="off", log_config=None, access_log=False, date_header=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=GRACE, **options,
    )  # fmt: skip
    server = EventServer(config, on_started)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="asgi")
    try:
        await asyncio.shield(serving)
    finally:
        on_stop()
        server.stop()
        await serving


def listen(address: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises `SetupError` that names the ``setting``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        raise SetupError(
            f"{address}:{port} cannot be listened on: {error.strerror}.",
            f"Choose another port with {setting} (PUPITRE_{setting.upper()}).",
        ) from error
    listener.setblocking(False)
    # asyncio sets this only on sockets made with proto=IPPROTO_TCP; without it each answer waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
