"""The portal as an ASGI application. It reaches three databases and nothing else: no broker, no cluster, no host."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import pupitre
from pupitre.config import Settings
from pupitre.errors import PupitreError
from pupitre.portal import pages
from pupitre.portal.context import open_portal
from pupitre.portal.http import assets, ops, problems, templates
from pupitre.portal.http.guards import Body, SameOrigin, Timed
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.http.problems import RESPONSES, Problem
from pupitre.portal.rest import audit, cluster, commands, desktops, events, hosts, images, locks, sessions, users

REST = (sessions, images, desktops, commands, events, hosts, cluster, users, locks, audit)


def create_app(settings: Settings) -> FastAPI:
    """The portal. Raises `SetupError` when a browser package is missing; databases open with its lifespan.

    ``app.state.portal.feed.close()`` ends open event streams, so that a server can stop.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_portal(settings, metrics) as portal:
            app.state.portal = portal
            yield

    app = FastAPI(
        title="Pupitre",
        version=pupitre.__version__,
        summary="Every student's computer of the class, in a browser tab.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # an address has one form, and nothing is made of the Host that was sent
        lifespan=lifespan,
    )
    for module in REST:
        app.include_router(module.router, prefix="/api/v1", responses=RESPONSES)
    app.include_router(ops.router)
    for router in pages.ROUTERS:
        app.include_router(router, include_in_schema=False)
    app.state.templates = templates.templates(assets.mount(app, settings))
    app.add_exception_handler(PupitreError, problems.on_error)
    app.add_exception_handler(HTTPException, problems.on_http_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(Exception, problems.on_fault)
    # The last one added is the first to see a request.
    app.add_middleware(Body)
    app.add_middleware(SameOrigin, settings=settings)
    app.add_middleware(Timed, metrics=metrics)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Put the shape of problem documents into OpenAPI, which `RESPONSES` refers to."""
    document = app.openapi()
    document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
    document["components"].setdefault("securitySchemes", {})["bearer"] = {"type": "http", "scheme": "bearer"}
    document["security"] = [{"bearer": []}]
    document["paths"]["/api/v1/sessions"]["post"]["security"] = []
