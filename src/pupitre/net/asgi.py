"""An ASGI application on a socket, by uvicorn, without uvicorn's clock: at rest it does nothing at all.

Connections come from a `Listener`, which limits their number, and are read by `BoundedHttp`.

Signals belong to `ops.run_process`. Lifespans are run by the caller, so that what they
raise arrives there as it is.
"""

import asyncio
import contextlib
import http
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from pupitre.errors import SetupError
from pupitre.net import listener as listeners
from pupitre.net.http_protocol import BoundedHttp, refusal
from pupitre.net.limits import Limits
from pupitre.net.listener import Listener, Slot
from pupitre.runtime.unix_sockets import short
from pupitre.timings import HTTP_CLOSE_GRACE, LINGER

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class EventServer(uvicorn.Server):
    """uvicorn's server, which waits to be told to stop instead of looking ten times a second."""

    def __init__(self, config: uvicorn.Config, limits: Limits, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self.servers = []
        self._limits = limits
        self._on_started = on_started
        self._told = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept by ourselves: what uvicorn leaves to the event loop takes all there are, until descriptors end."""
        tls = self.config.ssl
        if tls is not None:
            tls.options |= ssl.OP_NO_RENEGOTIATION
        full = b"" if tls else refusal(http.HTTPStatus.SERVICE_UNAVAILABLE, self.config.encoded_headers)
        for listening in sockets or ():
            where = listening.getsockname()
            name = f"port {where[1]}" if isinstance(where, tuple) else f"socket {where}"
            accepting = Listener(name, listening, self._limits, self._greet, refusal=full)
            accepting.start()
            self.servers.append(accepting)  # type: ignore[arg-type]  # all uvicorn needs is close() and wait_closed()
        self.started = True

    async def _greet(self, connection: socket.socket, slot: Slot) -> None:
        protocol = BoundedHttp(self.config, self.server_state, {}, asyncio.get_running_loop(), slot=slot)
        tls: dict[str, Any] = {}
        if self.config.ssl is not None:
            tls = {"ssl": self.config.ssl, "ssl_handshake_timeout": slot.limits.head, "ssl_shutdown_timeout": LINGER}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection, **tls)
        except OSError as error:  # ssl.SSLError and TimeoutError are two
            log.debug("tls_handshake_failed", reason=str(error) or "time is up")

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
    limits: Limits,
    *,
    on_started: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
    ws: Any = "none",
    **options: Any,
) -> None:
    """Serve until cancelled; then ``on_stop`` ends what is open for long, the rest has `HTTP_CLOSE_GRACE` seconds."""
    # The Date header would need the clock; who wants one adds it to each answer. Whose forwarded addresses count,
    # `middleware.Forwarded` decides: by default uvicorn believes whoever runs on this machine.
    config = uvicorn.Config(
        app, ws=ws, http=BoundedHttp, lifespan="off", log_config=None, access_log=False, date_header=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=HTTP_CLOSE_GRACE, **options,
    )  # fmt: skip
    server = EventServer(config, limits, on_started)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="asgi")
    try:
        await asyncio.shield(serving)
    finally:
        on_stop()
        server.stop()
        await serving


def listen(address: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises `SetupError` that names the ``setting``."""
    try:
        return listeners.listen(address, port)
    except OSError as error:
        raise SetupError(
            f"{address}:{port} cannot be listened on: {error.strerror}.",
            f"Choose another port with {setting} (PUPITRE_{setting.upper()}).",
        ) from error


def listen_unix(path: Path) -> socket.socket:
    """A listening socket that its owner alone may open. Its folder has to be closed to others. Raises `SetupError`."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with short(path.parent) as folder:
            path.unlink(missing_ok=True)
            listener.bind(f"{folder}/{path.name}")
            path.chmod(0o600)
            listener.listen(128)
    except OSError as error:
        listener.close()
        raise SetupError(
            f"The socket {path} cannot be made: {error.strerror or error}.", "Set PUPITRE_HOME to a folder of your own."
        ) from error
    listener.setblocking(False)
    return listener
