"""Halting the cluster: one page, and its name typed in, so that nobody does it by mistake."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.errors import PupitreError
from pupitre.portal.context import REFRESHED, portal_of
from pupitre.portal.hosts import halt, hosts_of
from pupitre.portal.http.roles import HostAdmin
from pupitre.portal.http.templates import render
from pupitre.portal.pages.refusals import Refusal, refusal_of

router = APIRouter(dependencies=[REFRESHED])


@router.get("/admin/halt")
async def confirm_halt(request: Request, _caller: HostAdmin) -> Response:
    return await _page(request)


@router.post("/admin/halt")
async def halt_cluster(
    request: Request,
    caller: HostAdmin,
    cluster: Annotated[str, Form(max_length=64)] = "",
    hosts: Annotated[bool, Form()] = False,
) -> Response:
    portal = portal_of(request)
    if cluster.strip() != portal.settings.cluster:
        wrong = f"This is not its name. Type {portal.settings.cluster} to halt it."
        return await _page(request, typed=cluster, hosts=hosts, wrong=wrong)
    try:
        await halt(portal, caller, hosts=hosts)
    except PupitreError as error:
        return await _page(request, typed=cluster, hosts=hosts, refusal=refusal_of(error))
    return RedirectResponse("/admin/hosts", 303)


async def _page(
    request: Request,
    *,
    typed: str = "",
    hosts: bool = False,
    wrong: str | None = None,
    refusal: Refusal | None = None,
) -> Response:
    portal = portal_of(request)
    seen = hosts_of(portal)
    context = {
        "cluster": portal.settings.cluster,
        "host_count": len(seen),
        "desktop_count": sum(one.desktops for one in seen),
        "typed": typed,
        "hosts": hosts,
        "wrong": wrong,
        "refusal": refusal,
    }
    status = refusal.status if refusal else 422 if wrong else 200
    return render(request, "halt.html", context, status=status, headers=refusal.headers if refusal else {})
