"""One host, for administrators: its state, its settings, and the ways out of service and back.

What ends desktops has a page of its own first, which says how many and what happens to them.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.domain.people.access import User
from pupitre.errors import PupitreError
from pupitre.portal.context import REFRESHED, Portal, portal_of
from pupitre.portal.hosts import SeenHost, boot_up_host, configure_host, host_called, retire_host
from pupitre.portal.http.roles import HostAdmin
from pupitre.portal.http.templates import render
from pupitre.portal.pages.form_page import form_page
from pupitre.portal.pages.host_forms import HostForm, change, form_of
from pupitre.portal.pages.hosts import latest_orders
from pupitre.portal.pages.link import freshness
from pupitre.portal.pages.refusals import Refusal, refusal_of

router = APIRouter(dependencies=[REFRESHED])


class RetireMode(StrEnum):
    """Mode in which a host leaves service, as its page's address says it."""

    SHUT_DOWN = "shut-down"
    UNREGISTER = "unregister"


async def host_board(portal: Portal, user: User, seen: SeenHost) -> dict[str, Any]:
    """Context of the live part, for a whole page and for an event."""
    return {
        "seen": seen,
        "orders": await latest_orders(portal, user, seen.host.name),
        "silence": portal.settings.host_timeout,
        **freshness(portal),
    }


@router.get("/admin/hosts/{host}")
async def host(request: Request, caller: HostAdmin, host: str) -> Response:
    seen = host_called(portal_of(request), host)
    return await _page(request, caller.user, seen, form_of(seen.host))


@router.post("/admin/hosts/{host}")
async def configure(request: Request, caller: HostAdmin, host: str, form: Annotated[HostForm, Form()]) -> Response:
    """Ask the cluster for what differs; for nothing, when nothing does."""
    portal = portal_of(request)
    seen = host_called(portal, host)
    asked = change(form, seen.host)
    if isinstance(asked, dict):
        return await _page(request, caller.user, seen, form, errors=asked)
    wanted = asked.model_dump(exclude_none=True)
    try:
        if wanted:
            await configure_host(portal, caller, seen.host.name, **wanted)
    except PupitreError as error:
        return await _page(request, caller.user, seen, form, refusal=refusal_of(error))
    return RedirectResponse(f"/admin/hosts/{seen.host.name}", 303)


@router.post("/admin/hosts/{host}/boot-up")
async def boot_up(request: Request, caller: HostAdmin, host: str) -> Response:
    portal = portal_of(request)
    seen = host_called(portal, host)
    try:
        await boot_up_host(portal, caller, seen.host.name)
    except PupitreError as error:
        return await _page(request, caller.user, seen, form_of(seen.host), refusal=refusal_of(error))
    return RedirectResponse(f"/admin/hosts/{seen.host.name}", 303)


@router.get("/admin/hosts/{host}/{way}")
async def confirm(request: Request, caller: HostAdmin, host: str, way: RetireMode) -> Response:
    """Page that says what will happen, to how many desktops."""
    return await _confirmation(request, host_called(portal_of(request), host), way)


@router.post("/admin/hosts/{host}/{way}")
async def retire(
    request: Request,
    caller: HostAdmin,
    host: str,
    way: RetireMode,
    pace: Annotated[Literal["orderly", "at_once"], Form()] = "orderly",
) -> Response:
    portal = portal_of(request)
    seen = host_called(portal, host)
    try:
        await retire_host(
            portal, caller, seen.host.name, unregister=way is RetireMode.UNREGISTER, at_once=pace == "at_once"
        )
    except PupitreError as error:
        return await _confirmation(request, seen, way, pace, refusal_of(error))
    # The page of a host that was unregistered goes away; the list tells the outcome.
    return RedirectResponse("/admin/hosts" if way is RetireMode.UNREGISTER else f"/admin/hosts/{seen.host.name}", 303)


async def _page(
    request: Request,
    user: User,
    seen: SeenHost,
    form: HostForm,
    *,
    errors: dict[str, str] | None = None,
    refusal: Refusal | None = None,
) -> Response:
    return await form_page(
        request, "host.html", form, await host_board(portal_of(request), user, seen), errors=errors, refusal=refusal
    )


async def _confirmation(
    request: Request, seen: SeenHost, way: RetireMode, pace: str = "orderly", refusal: Refusal | None = None
) -> Response:
    settings = portal_of(request).settings
    context = {
        "seen": seen,
        "way": way,
        "pace": pace,
        "refusal": refusal,
        "notice_ms": int(settings.drain_notice * 1000),
        "grace_ms": int(settings.shutdown_grace * 1000),
    }
    status = refusal.status if refusal else 200
    return render(request, "retire.html", context, status=status, headers=refusal.headers if refusal else {})
