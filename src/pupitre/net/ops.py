"""Operations of every process: its loop, its end, and its health.

``/healthz`` answers while the process lives, ``/readyz`` while it can do its work,
``/metrics`` in Prometheus's text format: on a Unix socket that its owner alone may open
(``run/ops/<process>.<pid>.sock``), and, where ``ops_port`` is set, on the loopback for
whoever shows the token in ``ops.token``. The loopback alone proves nothing: every user
of the machine reaches it. Readiness is also told by the sd_notify protocol
(``NOTIFY_SOCKET``), to systemd as to `pupitre up`.
"""

import asyncio
import contextlib
import gc
import hmac
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import structlog
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pupitre import config
from pupitre.config import Settings
from pupitre.errors import PupitreError, SetupError
from pupitre.net import limits
from pupitre.net.asgi import listen, listen_unix, serve
from pupitre.runtime.log import set_up_logging
from pupitre.runtime.timeouts import timeout
from pupitre.timings import OPS_CHECK_LIMIT

log = structlog.get_logger(__name__)

DONE = "done"
"""A process's last word (``STATUS=done``) when it has done what it was told, and nobody shall start it again."""


STARTING = "it is starting"
Check = Callable[[], Awaitable[str | None]]
"""What is missing, so that "not ready: …" is completed; None when nothing is."""
_HEADERS = [("X-Content-Type-Options", "nosniff")]


class Ops:
    """A process's own report. ``registry`` holds its metrics."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ready_gauge = Gauge("pupitre_ready", "1 while the process can do its work", registry=self.registry)
        self._missing: dict[str, str] = {"": STARTING}
        self._registries = [self.registry]
        self._checks: list[Check] = []

    def add_registry(self, registry: CollectorRegistry) -> None:
        """Further metrics of this process, all of other names."""
        self._registries.append(registry)

    def add_check(self, check: Check) -> None:
        """Add a check that runs whenever somebody asks whether the process can do its work."""
        self._checks.append(check)

    def ready(self) -> None:
        self.has("")

    def not_ready(self, reason: str) -> None:
        """``reason`` completes "not ready: …"."""
        self.lacks("", reason)

    def has(self, part: str) -> None:
        """Withdraw what was said by `lacks`."""
        reason = self._missing.pop(part, None)
        if reason == STARTING:
            _settle_down()  # once: whatever is frozen is never collected
            notify("READY=1")  # it has started, whatever it lacks: a portal answers 503 while its database is away
        if reason is not None and not self._missing:
            self._ready_gauge.set(1)
            notify("READY=1")
            log.info("ready")

    def lacks(self, part: str, reason: str) -> None:
        """It is not ready, for this reason as for any other, until it `has` ``part`` again."""
        if part not in self._missing:
            log.warning("not_ready", reason=reason)
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
        reasons = list(dict.fromkeys(self._missing.values()))
        for check in self._checks:
            if not reasons and (missing := await _within_limit(check)):
                reasons.append(missing)
        if not reasons:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(f"not ready: {'; '.join(reasons)}\n", status_code=503)

    async def _metrics(self, _request: Request) -> Response:
        text = b"".join(generate_latest(registry) for registry in self._registries)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _within_limit(check: Check) -> str | None:
    try:
        async with timeout(OPS_CHECK_LIMIT):
            return await check()
    except TimeoutError:
        return f"no answer within {OPS_CHECK_LIMIT} s"


class TokenRequired:
    """Answers whoever shows the token, and tells nobody else anything."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(shown, self._expected):
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse("Show the token in ops.token.\n", 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)


def ensure_token(home: Path) -> str:
    """The token in ``ops.token``, which is made if it is missing, for its owner alone. Raises `SetupError`."""
    path = home / "ops.token"
    try:
        if not path.exists():
            partial = path.with_name(f"ops.token.{os.getpid()}")
            partial.touch(mode=0o600)
            partial.write_text(secrets.token_urlsafe(32))
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)  # whole or not at all, and of several processes one makes it
            partial.unlink()
        token = path.read_text().strip()
    except OSError as error:
        raise SetupError(f"{path} cannot be used: {error.strerror}.", "Remove it, or set ops_port = 0.") from error
    if not token:
        raise SetupError(f"{path} is empty.", "Remove it: it is made again at the next start.")
    return token


def _settle_down() -> None:
    """Freeze the objects of a started process: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def socket_path(settings: Settings, process: str) -> Path:
    """Path of the socket on which this process answers.

    Sockets of processes that were killed are removed on the way.
    """
    folder = settings.run_dir / "ops"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for path in folder.glob("*.sock"):
        if not Path(f"/proc/{path.stem.rpartition('.')[2]}").exists():
            path.unlink(missing_ok=True)
    return folder / f"{process}.{os.getpid()}.sock"


@contextlib.asynccontextmanager
async def _serving(ops: Ops, settings: Settings) -> AsyncIterator[None]:
    """``/healthz``, ``/readyz`` and ``/metrics``, for as long as the context is open. Raises `SetupError`."""
    path = socket_path(settings, ops.process)
    doors: list[tuple[ASGIApp, socket.socket]] = [(ops.app(), listen_unix(path))]
    serving: list[asyncio.Task[None]] = []
    try:
        if settings.ops_port:
            listener = listen("127.0.0.1", settings.ops_port, "ops_port")
            doors.append((TokenRequired(ops.app(), ensure_token(settings.home)), listener))
        for app, listener in doors:
            started = asyncio.Event()
            serve_it = serve(app, listener, limits.of_ops(settings), on_started=started.set, headers=_HEADERS)
            serving.append(asyncio.create_task(serve_it))
            await started.wait()
        notify(f"STATUS=ops {path}")
        yield
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for _, listener in doors:
            listener.close()
        path.unlink(missing_ok=True)


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
    set_up_logging(settings, process)
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
            log.info("stopped")
        except PupitreError as error:
            print(f"pupitre {process}: {error}", file=sys.stderr)
            return 2 if isinstance(error, SetupError) else 1
        return 0

    return uvloop.run(body())
