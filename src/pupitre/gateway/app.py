"""The gateway's HTTP side: pictures of screens, and a sign of life. Consoles are in `websocket`."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pupitre.domain.ticket import Purpose
from pupitre.errors import PupitreError
from pupitre.gateway import problem
from pupitre.gateway.service import Gateway
from pupitre.net.middleware import refusal_document
from pupitre.timings import PICTURE_AGE


def create_app(gateway: Gateway, *, alone: bool = False) -> Starlette:
    """The ASGI application. ``alone`` puts its sign of life at the root too, as on a portal."""

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
        return PlainTextResponse("ok")

    prefixes = ["/gateway", ""] if alone else ["/gateway"]
    app = Starlette(
        routes=[
            Route("/gateway/v1/screenshot/{desktop}", screenshot),
            *(Route(f"{prefix}/healthz", healthz) for prefix in prefixes),
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
