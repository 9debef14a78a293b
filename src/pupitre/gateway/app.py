"""The gateway's HTTP side: pictures of screens, health and figures. Consoles are in `websocket`."""

from collections.abc import Awaitable, Callable

import prometheus_client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pupitre.domain.ticket import Purpose
from pupitre.errors import PupitreError
from pupitre.gateway import problem
from pupitre.gateway.service import Gateway

PICTURE_AGE = 5
"""Seconds for which a browser may show a picture again."""


def create_app(gateway: Gateway, *, alone: bool = False) -> Starlette:
    """The ASGI application. ``alone`` puts health and figures at the root too, as on every process."""

    async def screenshot(request: Request) -> Response:
        text = request.query_params.get("ticket", "")
        headers = dict(request.headers)
        ticket = gateway.admit(text, Purpose.SCREENSHOT, request.path_params["desktop"], headers)
        picture = await gateway.picture(ticket, text)
        return Response(
            picture,
            media_type="image/png",
            headers={
                "Cache-Control": f"private, max-age={PICTURE_AGE}",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(
            prometheus_client.generate_latest(gateway.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
        )

    operations: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
        ("/healthz", healthz),
        ("/readyz", healthz),  # what a gateway needs it has loaded before it listens
        ("/metrics", metrics),
    ]
    prefixes = ["/gateway", ""] if alone else ["/gateway"]
    return Starlette(
        routes=[
            Route("/gateway/v1/screenshot/{desktop}", screenshot),
            *(Route(prefix + path, endpoint) for prefix in prefixes for path, endpoint in operations),
        ],
        exception_handlers={PupitreError: _refuse},
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, PupitreError)
    return Response(
        problem.document(error), status_code=problem.status_of(error), media_type=problem.MEDIA_TYPE,
        headers={"Cache-Control": "no-store"},
    )  # fmt: skip
