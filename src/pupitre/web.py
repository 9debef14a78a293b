"""The web process: portal and gateway side by side under one origin, or each alone behind a proxy.

Neither knows of the other. ``/gateway/…`` and every WebSocket go to the gateway, all
else to the portal; a console's bytes never pass through the portal's stack.
"""

import time
from contextlib import AsyncExitStack
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import structlog
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.net import limits
from pupitre.net.asgi import listen, serve
from pupitre.net.middleware import Forwarded, KnownHosts, security_headers
from pupitre.net.ops import Ops
from pupitre.pki.credentials import Credentials
from pupitre.store.sql.health import telling

log = structlog.get_logger(__name__)


async def run_web(settings: Settings, ops: Ops) -> None:
    """Portal and gateway on ``portal_port`` until cancelled."""
    from pupitre.gateway.app import create_app as create_gateway
    from pupitre.gateway.service import Gateway
    from pupitre.gateway.websocket import console_protocol
    from pupitre.net.splice import prepare_process
    from pupitre.portal.http.app import create_app as create_portal

    credentials = Credentials(settings, ops.registry)
    credentials.keep("portal")
    credentials.keep("gateway", lambda: gateway.reload())  # noqa: PLW0108 - the gateway is made below
    gateway = Gateway(settings)
    ops.add_registry(gateway.registry)
    portal_app, gateway_app = create_portal(settings), create_gateway(gateway)
    prepare_process()
    await _run(
        settings, ops, credentials, (portal_app, gateway_app), PathRouter(portal_app, gateway_app),
        ws=console_protocol(gateway),
    )  # fmt: skip


async def run_portal(settings: Settings, ops: Ops) -> None:
    """The portal alone on ``portal_port`` until cancelled."""
    from pupitre.portal.http.app import create_app

    credentials = Credentials(settings, ops.registry)
    credentials.keep("portal")
    app = create_app(settings)
    await _run(settings, ops, credentials, (app,), app)


async def run_gateway(settings: Settings, ops: Ops) -> None:
    """The gateway alone on ``gateway_port`` until cancelled."""
    from pupitre.gateway.app import create_app
    from pupitre.gateway.service import Gateway
    from pupitre.gateway.websocket import console_protocol
    from pupitre.net.splice import prepare_process

    credentials = Credentials(settings, ops.registry)
    credentials.keep("gateway", lambda: gateway.reload())  # noqa: PLW0108 - the gateway is made below
    gateway = Gateway(settings)
    ops.add_registry(gateway.registry)
    app = create_app(gateway, alone=True)
    prepare_process()
    await _run(settings, ops, credentials, (app,), app, ws=console_protocol(gateway), setting="gateway_port")


async def _run(
    settings: Settings,
    ops: Ops,
    credentials: Credentials,
    parts: tuple[Starlette, ...],
    app: ASGIApp,
    *,
    ws: Any = "none",
    setting: str = "portal_port",
) -> None:
    if not settings.public_origin and not settings.portal_port:
        raise SetupError("With portal_port 0, browsers have no address.", "Set portal_port, or public_origin.")
    tls: dict[str, Any] = {}
    if settings.tls_cert and settings.tls_key:
        public = credentials.keep_public(settings.tls_cert, settings.tls_key)
        tls = {"ssl_context_factory": lambda _config, _default: public}
    listener = listen(settings.portal_host, getattr(settings, setting), setting)
    async with AsyncExitStack() as lifespans:
        lifespans.callback(listener.close)
        await lifespans.enter_async_context(credentials.watching())
        for part in parts:
            await lifespans.enter_async_context(part.router.lifespan_context(part))
            _watch(part, ops)
            portal = getattr(part.state, "portal", None)
            if portal is not None:
                rows = (portal.accounts, portal.commands, portal.status)
                await lifespans.enter_async_context(telling(ops, *(one.database for one in rows)))
        await serve(
            AccessLog(Forwarded(KnownHosts(app, settings.served), settings.proxies)),
            listener,
            limits.of_web(settings),
            on_started=ops.ready,
            on_stop=lambda: _end_event_streams(parts),
            ws=ws,
            headers=security_headers(settings),
            **tls,
        )


def _watch(part: Starlette, ops: Ops) -> None:
    """A portal can do its work while its databases answer."""
    portal = getattr(part.state, "portal", None)
    if portal is not None:
        ops.add_registry(portal.metrics.registry)
        ops.add_check(portal.missing)


def _end_event_streams(parts: tuple[Starlette, ...]) -> None:
    """Live events never end by themselves, and a server waits for open answers."""
    for part in parts:
        portal = getattr(part.state, "portal", None)
        if portal is not None:
            portal.feed.close()


class PathRouter:
    """Two applications on one origin, by the first part of the path."""

    def __init__(self, portal: ASGIApp, gateway: ASGIApp) -> None:
        self._portal = portal
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._gateway if scope["path"].startswith("/gateway/") else self._portal
        await app(scope, receive, send)


class AccessLog:
    """Dates every answer (RFC 9110, 6.6.1), keeps it out of caches unless it says otherwise, and logs it.

    Its query is not logged: it may hold a ticket.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"date", formatdate(usegmt=True).encode())]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
                log.debug(
                    "request_answered", method=scope["method"], path=quote(scope["path"]), status=message["status"],
                    ms=round((time.monotonic() - begun) * 1000, 1),
                )  # fmt: skip
            await send(message)

        begun = time.monotonic()
        await self._app(scope, receive, dated)
