"""Checks of every request before a route of the portal sees it: size, origin, counting.

A cookie alone proves nothing about who made the browser send it. So a request that
may change something and comes with a cookie, or to a page, has to say that one of
our own pages sent it (``Sec-Fetch-Site``, which scripts cannot forge, or ``Origin``).
"""

import time
from urllib.parse import urlsplit

from fastapi import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pupitre.config import Settings
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.http.problems import problem
from pupitre.portal.identity.sessions import COOKIE

MAX_BODY = 64 * 1024
MAX_DRAINED = 16 * 1024 * 1024
"""A body that is too large is read and thrown away up to here, so that its sender gets to read the answer."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Timed:
    """Counts every answer, and how long it took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in SAFE | {"POST", "DELETE"} else "other"
                labels = (method, _route_name(scope))
                self.metrics.requests.labels(*labels, message["status"]).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, timed)


def _route_name(scope: Scope) -> str:
    """The path with the names of its parameters in place of their values, so that labels stay few."""
    if scope["path"].startswith("/static/"):
        return "/static"
    if "route" not in scope:
        return "unmatched"
    names = {str(value): f"{{{name}}}" for name, value in scope.get("path_params", {}).items()}
    return "/".join(names.get(segment, segment) for segment in scope["path"].split("/"))


class Body:
    """A body of more than `MAX_BODY` bytes is refused before anyone parses it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        announced = request.headers.get("content-length", "0")
        body = bytearray()
        size = 0
        whole = False
        if announced.isdecimal() and int(announced) <= MAX_DRAINED:
            while not whole and size <= MAX_DRAINED:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size += len(message.get("body", b""))
                if size <= MAX_BODY:
                    body += message.get("body", b"")
                whole = not message.get("more_body", False)
        if not whole or size > MAX_BODY:
            detail = f"The body is larger than {MAX_BODY // 1024} KiB. Send less."
            headers = {} if whole else {"Connection": "close"}
            await problem(request, 413, "too_large", detail, headers=headers)(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)


class SameOrigin:
    """Refuses what another site made a browser send, and sends loopback's other names to ours."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.origin = settings.origin
        self._origins = frozenset(settings.served.origins)
        self._ours = urlsplit(settings.origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        if request.method not in SAFE and self._needs_proof(request) and not self._has_proof(request):
            detail = f"This request did not come from a page of {self.origin}. Open that address and try again."
            await problem(request, 403, "cross_site", detail)(scope, receive, send)
        elif request.method == "GET" and self._other_loopback_name(request):
            query = f"?{request.url.query}" if request.url.query else ""
            await RedirectResponse(f"{self.origin}{request.url.path}{query}", 307)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _needs_proof(self, request: Request) -> bool:
        if "authorization" in request.headers:
            return False  # no other site can make a browser send this header
        return COOKIE in request.cookies or not request.url.path.startswith("/api/")

    def _has_proof(self, request: Request) -> bool:
        site = request.headers.get("sec-fetch-site")
        return site == "same-origin" if site else request.headers.get("origin") in self._origins

    def _other_loopback_name(self, request: Request) -> bool:
        """A page at localhost could not open a console at 127.0.0.1."""
        if request.headers.get("sec-fetch-mode") != "navigate" or self._ours.hostname not in _LOOPBACK:
            return False
        host = urlsplit(f"//{request.headers.get('host', '')}")
        if any(host.netloc == urlsplit(origin).netloc for origin in self._origins):
            return False
        return host.hostname in _LOOPBACK and host.hostname != self._ours.hostname and host.port == self._ours.port
