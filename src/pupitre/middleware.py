"""What a request to the web passes before it reaches portal or gateway."""

from starlette.types import ASGIApp, Receive, Scope, Send

from pupitre.peer import TrustedProxies


class Forwarded:
    """Puts the browser's address and scheme in place of a trusted proxy's: ``scope["client"]`` is who asks."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("client")
        if peer is not None:
            lines = _lines(scope, b"x-forwarded-for")
            client = self._proxies.client(peer[0], lines)
            if client != peer[0]:
                scope["client"] = (client, 0)
            schemes = _lines(scope, b"x-forwarded-proto") if self._proxies.trusts(peer[0]) else []
            scheme = schemes[-1].rpartition(",")[2].strip().lower() if schemes else ""
            if scheme in {"http", "https"}:
                scope["scheme"] = scheme
        await self._app(scope, receive, send)


def _lines(scope: Scope, wanted: bytes) -> list[str]:
    """Every line of a header, in the order in which they came."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
