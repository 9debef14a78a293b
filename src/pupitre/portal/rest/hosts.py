"""``/hosts``: for administrators."""

from fastapi import APIRouter, Request, Response

from pupitre.domain.command import RegisterHost
from pupitre.portal.context import portal_of
from pupitre.portal.hosts import register_host
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.roles import HostKeeper
from pupitre.portal.shapes import Accepted, HostOut, HostRequest, Page, host_out

router = APIRouter(tags=["hosts"])


@router.get("/hosts")
async def hosts(request: Request, _caller: HostKeeper, limit: Limit = 100, after: After = None) -> Page[HostOut]:
    """Every host, by name."""
    return page(await portal_of(request).status.hosts(), host_out, lambda host: host.name, limit, after)


@router.post("/hosts", status_code=202)
async def add_host(request: Request, response: Response, caller: HostKeeper, body: HostRequest) -> Accepted:
    """Ask the cluster to take a host whose agent already runs."""
    order = RegisterHost(name=body.name, address=body.address, port=body.port, edition=body.edition)
    command = await register_host(portal_of(request), caller, order)
    response.headers["Location"] = f"/api/v1/commands/{command.id}"
    return Accepted(command=command.id)
