"""Middleware of the web: a request passes it before portal or gateway, and every answer carries its headers."""

import json
from collections.abc import Iterable
from http import HTTPStatus

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pupitre.config import Settings
from pupitre.domain.origin import ServedHosts
from pupitre.domain.peer import TrustedProxies

log = structlog.get_logger(__name__)

PROBLEM = "application/problem+json"


def security_headers(settings: Settings) -> list[tuple[str, str]]:
    """Headers of every answer, whoever makes it: pages, problems, files, redirects and what is no HTTP at all."""
    headers = [
        ("Content-Security-Policy", content_security_policy(settings.served.origins)),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
    ]
    if settings.origin.startswith("https:"):
        headers.append(("Strict-Transport-Security", "max-age=31536000"))
    return headers


def content_security_policy(origins: Iterable[str]) -> str:
    """Policy: everything from our own origin; no inline script or style, no eval."""
    sockets = " ".join(f"ws{origin.removeprefix('http')}" for origin in origins)
    return "; ".join(
        (
            "default-src 'self'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            f"connect-src 'self' {sockets}",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )


def refusal_document(status: int, detail: str, path: str) -> bytes:
    """A problem document (RFC 9457) for a request that neither portal nor gateway is to see."""
    status_name = HTTPStatus(status)
    code = status_name.name.lower()
    document = {"type": "about:blank", "title": status_name.phrase, "status": status, "detail": detail,
                "instance": path, "code": code}  # fmt: skip
    return json.dumps(document).encode()


class KnownHosts:
    """Refuses what was sent to a name that is not ours, before anything reads the rest of it."""

    def __init__(self, app: ASGIApp, served: ServedHosts) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        local = scope["server"][0] if scope.get("server") else None
        refusal = self._served.refusal(_lines(scope, b"host"), local)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = refusal_document(*refusal, path=scope["path"])
        await Response(body, refusal[0], media_type=PROBLEM)(scope, receive, send)


class Forwarded:
    """Puts the browser's address, scheme and host in place of a trusted proxy's: ``scope["client"]`` is who asks."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("client")
        if peer is not None:
            lines = _lines(scope, b"x-forwarded-for")
            client = self._proxies.client(peer[0], lines)
            if client != peer[0]:
                scope["client"] = (client, 0)
            elif lines and self._proxies.expected and not self._warned and not self._proxies.trusts(peer[0]):
                self._warned = True  # once: whoever likes can send it
                log.warning("forwarded_address_ignored", proxy=peer[0])
            if self._proxies.trusts(peer[0]):
                scheme = last_word(_lines(scope, b"x-forwarded-proto")).lower()
                if scheme in {"http", "https"}:
                    scope["scheme"] = scheme
                if host := last_word(_lines(scope, b"x-forwarded-host")):
                    others = [header for header in scope["headers"] if header[0] != b"host"]
                    scope["headers"] = [*others, (b"host", host.encode("latin-1"))]
        await self._app(scope, receive, send)


def last_word(lines: Iterable[str]) -> str:
    """The word of the nearest proxy, which is the last one of the last line."""
    return ",".join(lines).rpartition(",")[2].strip()


def _lines(scope: Scope, wanted: bytes) -> list[str]:
    """Every line of a header, in the order in which they came."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
