"""The gateway's HTTP side: pictures of screens, health and figures. Consoles are in `websocket`."""

from collections.abc import Awaitable, Callable

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pupitre.domain.ticket import Purpose
from pupitre.errors import PupitreError
from pupitre.gateway import problem
from pupitre.gateway.service import Gateway
from pupitre.middleware import refusal_document

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
            headers={"Cache-Control": f"private, max-age={PICTURE_AGE}"},
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
    app = Starlette(
        routes=[
            Route("/gateway/v1/screenshot/{desktop}", screenshot),
            *(Route(prefix + path, endpoint) for prefix in prefixes for path, endpoint in operations),
        ],
        exception_handlers={PupitreError: _refuse, HTTPException: _refuse_route, Exception: _own_fault},
    )
    app.router.redirect_slashes = False
    return app


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "There is nothing at this address." if error.status_code == 404 else "This address takes GET alone."
    document = refusal_document(error.status_code, detail, request.url.path)
    return Response(document, error.status_code, headers=error.headers, media_type=problem.MEDIA_TYPE)


async def _own_fault(request: Request, _error: Exception) -> Response:
    """A fault of ours. Starlette passes it on to the server, which logs it."""
    document = refusal_document(500, "Something went wrong on our side and was logged. Try again.", request.url.path)
    return Response(document, 500, media_type=problem.MEDIA_TYPE)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, PupitreError)
    return Response(problem.document(error), status_code=problem.status_of(error), media_type=problem.MEDIA_TYPE)
