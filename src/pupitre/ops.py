"""What every process has in common: its loop, its end, and how it says how it is.

``/healthz`` answers while the process lives, ``/readyz`` while it can do its work,
``/metrics`` in Prometheus's text format. Readiness is also told by the sd_notify
protocol (``NOTIFY_SOCKET``), to systemd as to `pupitre up`.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pupitre import config, limits, log
from pupitre.asgi import listen, serve
from pupitre.config import Settings
from pupitre.errors import PupitreError, SetupError

logger = structlog.get_logger(__name__)

DONE = "done"
"""A process's last word (``STATUS=done``) when it has done what it was told, and nobody shall start it again."""


STARTING = "it is starting"


class Ops:
    """A process's own report. ``registry`` holds its metrics."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ready_gauge = Gauge("pupitre_ready", "1 while the process can do its work", registry=self.registry)
        self._missing: dict[str, str] = {"": STARTING}

    def ready(self) -> None:
        self.has("")

    def not_ready(self, reason: str) -> None:
        """``reason`` completes "not ready: …"."""
        self.lacks("", reason)

    def has(self, part: str) -> None:
        """What `lacks` was said of is there again."""
        reason = self._missing.pop(part, None)
        if reason == STARTING:
            _settle_down()  # once: whatever is frozen is never collected
        if reason is not None and not self._missing:
            self._ready_gauge.set(1)
            notify("READY=1")
            logger.info("Ready.")

    def lacks(self, part: str, reason: str) -> None:
        """It is not ready, for this reason as for any other, until it `has` ``part`` again."""
        if part not in self._missing:
            logger.warning("Not ready.", reason=reason)
        self._missing[part] = reason
        self._ready_gauge.set(0)

    def app(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ]
        )
        app.router.redirect_slashes = False
        return app

    async def _healthz(self, _request: Request) -> Response:
        return PlainTextResponse(f"{self.process} is alive\n")

    async def _readyz(self, _request: Request) -> Response:
        if not self._missing:
            return PlainTextResponse("ready\n")
        reasons = "; ".join(dict.fromkeys(self._missing.values()))
        return PlainTextResponse(f"not ready: {reasons}\n", status_code=503)

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


def _settle_down() -> None:
    """What a process is made of stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@contextlib.asynccontextmanager
async def _serving(ops: Ops, settings: Settings) -> AsyncIterator[None]:
    listener = listen("127.0.0.1", settings.ops_port, "ops_port")
    host, port = listener.getsockname()[:2]
    started = asyncio.Event()
    serving = asyncio.create_task(serve(ops.app(), listener, limits.of_ops(settings), on_started=started.set))
    await started.wait()
    notify(f"STATUS=ops http://{host}:{port}")
    try:
        yield
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        listener.close()


def notify(message: str) -> None:
    """Tell the supervisor, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(message.encode(), address)


def run_process(process: str, main: Callable[[Settings, Ops], Awaitable[None]]) -> int:
    """Run ``main`` until it ends or SIGTERM or SIGINT cancels it; the exit code."""
    settings = config.load()
    log.setup(settings, process)
    limits.raise_descriptors()
    ops = Ops(process)

    async def body() -> int:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, me.cancel)
        try:
            async with _serving(ops, settings):
                await main(settings, ops)
            notify(f"STATUS={DONE}")
        except asyncio.CancelledError:
            logger.info("Stopped.")
        except PupitreError as error:
            print(f"pupitre {process}: {error}", file=sys.stderr)
            return 2 if isinstance(error, SetupError) else 1
        return 0

    return uvloop.run(body())
