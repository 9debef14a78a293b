"""Hosts, for administrators: all of them, and the form that registers another.

Forms here are plain ones: what is wrong is said beside its field, and what was typed stays.
Commands and hosts change on the page by events.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.domain.command import Command, RegisterHost
from pupitre.domain.command_kinds import COMMAND_KINDS
from pupitre.domain.people.access import User
from pupitre.errors import PupitreError
from pupitre.portal.context import REFRESHED, Portal, portal_of
from pupitre.portal.hosts import hosts_of, register_host
from pupitre.portal.http.roles import HostAdmin
from pupitre.portal.pages.form_page import form_page
from pupitre.portal.pages.host_forms import HostForm, registration
from pupitre.portal.pages.link import freshness
from pupitre.portal.pages.refusals import Refusal, refusal_of

router = APIRouter(dependencies=[REFRESHED])
SHOWN = 5
"""How many of one's latest commands a page lists."""


async def latest_orders(portal: Portal, user: User, host: str | None = None) -> list[Command]:
    """The user's latest commands about hosts, or about one host."""
    mine = await portal.commands.of_user(user.id)
    found = [command for command in mine if COMMAND_KINDS[command.kind].about_hosts]
    return [command for command in found if host is None or command.subject == host][:SHOWN]


async def hosts_board(portal: Portal, user: User) -> dict[str, Any]:
    """Context of the list, for a whole page and for an event."""
    return {
        "hosts": hosts_of(portal),
        "orders": await latest_orders(portal, user),
        **freshness(portal),
    }


@router.get("/admin/hosts")
async def hosts(request: Request, caller: HostAdmin) -> Response:
    return await _page(request, caller.user, HostForm())


@router.post("/admin/hosts")
async def add_host(request: Request, caller: HostAdmin, form: Annotated[HostForm, Form()]) -> Response:
    asked = registration(form)
    if not isinstance(asked, RegisterHost):
        return await _page(request, caller.user, form, errors=asked)
    try:
        await register_host(portal_of(request), caller, asked)
    except PupitreError as error:
        return await _page(request, caller.user, form, refusal=refusal_of(error))
    return RedirectResponse("/admin/hosts", 303)


async def _page(
    request: Request,
    user: User,
    form: HostForm,
    *,
    errors: dict[str, str] | None = None,
    refusal: Refusal | None = None,
) -> Response:
    return await form_page(
        request, "hosts.html", form, await hosts_board(portal_of(request), user), errors=errors, refusal=refusal
    )
