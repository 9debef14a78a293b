"""``/hosts``: for administrators. A host is called by its name, its label or its address."""

from fastapi import APIRouter, Request, Response

from pupitre.domain.command import Command, RegisterHost
from pupitre.portal import hosts
from pupitre.portal.context import REFRESHED, portal_of
from pupitre.portal.http.roles import HostAdmin
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.schemas import Accepted, HostChange, HostOut, HostRequest, HostRetirement, Page, host_out

router = APIRouter(tags=["hosts"], dependencies=[REFRESHED])


@router.get("/hosts")
async def list_hosts(request: Request, _caller: HostAdmin, limit: Limit = 100, after: After = None) -> Page[HostOut]:
    """Every host, by name."""
    found = hosts.hosts_of(portal_of(request))
    return page(found, host_out, lambda seen: seen.host.name, limit, after)


@router.get("/hosts/{host}")
async def host(request: Request, _caller: HostAdmin, host: str) -> HostOut:
    return host_out(hosts.host_called(portal_of(request), host))


@router.post("/hosts", status_code=202)
async def add_host(request: Request, response: Response, caller: HostAdmin, body: HostRequest) -> Accepted:
    """Ask the cluster to take a host whose agent already runs."""
    order = RegisterHost(name=body.name, address=body.address, port=body.port, edition=body.edition, mac=body.mac)
    return accepted(response, await hosts.register_host(portal_of(request), caller, order))


@router.patch("/hosts/{host}", status_code=202)
async def change_host(request: Request, response: Response, caller: HostAdmin, host: str, body: HostChange) -> Accepted:
    """Change what is given."""
    portal = portal_of(request)
    return accepted(response, await hosts.configure_host(portal, caller, host, **body.model_dump()))


@router.post("/hosts/{host}/retire", status_code=202)
async def retire_host(
    request: Request, response: Response, caller: HostAdmin, host: str, body: HostRetirement
) -> Accepted:
    """Shut the host down, or take it out of the cluster; its desktops go first."""
    portal = portal_of(request)
    command = await hosts.retire_host(portal, caller, host, unregister=body.unregister, at_once=body.at_once)
    return accepted(response, command)


@router.post("/hosts/{host}/boot", status_code=202)
async def boot_host(request: Request, response: Response, caller: HostAdmin, host: str) -> Accepted:
    """Wake a host that was shut down."""
    return accepted(response, await hosts.boot_up_host(portal_of(request), caller, host))


def accepted(response: Response, command: Command) -> Accepted:
    """The answer to what was written down: where its outcome will be."""
    response.headers["Location"] = f"/api/v1/commands/{command.id}"
    return Accepted(command=command.id)
