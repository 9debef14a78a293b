"""Hosts, for administrators."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from pupitre.domain.access import User
from pupitre.domain.command import CommandKind, RegisterHost
from pupitre.errors import Invalid
from pupitre.portal.context import Portal, portal_of
from pupitre.portal.hosts import register_host
from pupitre.portal.roles import HostKeeper
from pupitre.portal.shapes import HostRequest
from pupitre.portal.views import render

router = APIRouter()
SHOWN = 5
"""How many of one's latest registrations the page lists."""


async def hosts_board(portal: Portal, user: User) -> dict[str, Any]:
    recent = [
        command for command in await portal.commands.of_user(user.id) if command.kind is CommandKind.REGISTER_HOST
    ]
    return {"hosts": await portal.status.hosts(), "registrations": recent[:SHOWN]}


@router.get("/admin/hosts")
async def hosts(request: Request, caller: HostKeeper) -> Response:
    return render(request, "hosts.html", await hosts_board(portal_of(request), caller.user))


@router.post("/admin/hosts")
async def add_host(
    request: Request,
    caller: HostKeeper,
    name: Annotated[str, Form()],
    address: Annotated[str, Form()],
    port: Annotated[str, Form()],
    edition: Annotated[bool, Form()] = False,
) -> Response:
    try:
        asked = HostRequest.model_validate(
            {"name": name.strip(), "address": address.strip(), "port": port, "edition": edition}
        )
    except ValidationError as error:
        raise Invalid(
            "A host needs a name of small letters, digits and dashes, an address (IP or host name)"
            " and a port from 1 to 65535. Mend the form and send it again."
        ) from error
    portal = portal_of(request)
    order = RegisterHost(name=asked.name, address=asked.address, port=asked.port, edition=asked.edition)
    await register_host(portal, caller, order)
    if "hx-request" in request.headers:
        return render(request, "_hosts.html", await hosts_board(portal, caller.user))
    return RedirectResponse("/admin/hosts", 303)
