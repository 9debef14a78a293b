"""``/healthz``, ``/readyz``, ``/metrics``: for whoever runs this."""

from ipaddress import ip_address

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pupitre.errors import NotFound, Unavailable
from pupitre.portal.context import portal_of

router = APIRouter(include_in_schema=False)


@router.get("/healthz", response_class=PlainTextResponse)
async def alive() -> str:
    """The process answers."""
    return "ok"


@router.get("/readyz")
async def ready(request: Request) -> JSONResponse:
    """The three databases answer and take changes, so that requests can be served."""
    portal = portal_of(request)
    checks: dict[str, str] = {}
    for name, ask, database in (
        ("accounts", portal.accounts.users, portal.accounts.database),
        ("commands", portal.commands.version, portal.commands.database),
        ("status", portal.status.version, portal.status.database),
    ):
        try:
            await ask()
            if database.health.reason and database.health.may_be_tried():
                await database.check()
            checks[name] = database.health.reason or "ok"
        except Unavailable as error:
            checks[name] = error.reason
    fine = all(answer == "ok" for answer in checks.values())
    return JSONResponse({"ready": fine, "checks": checks}, 200 if fine else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For a collector on this machine; behind a proxy, the address is the browser's, as the proxy forwards it."""
    if request.client is None or not ip_address(request.client.host).is_loopback:
        raise NotFound("There is no such page.")
    return Response(generate_latest(portal_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
