"""Locks on sign-ins, for administrators: what is locked, until when, and a button for each that lifts it."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.errors import NotFound
from pupitre.portal.context import portal_of
from pupitre.portal.http.roles import UserAdmin
from pupitre.portal.http.templates import render
from pupitre.portal.identity.locks import lift_lock

router = APIRouter()


@router.get("/admin/locks")
async def locks(request: Request, _caller: UserAdmin) -> Response:
    portal = portal_of(request)
    context = {"locks": await portal.throttle.locks(), "per_minute": portal.settings.sign_in_per_minute}
    return render(request, "locks.html", context)


@router.post("/admin/locks/{lock}/lift")
async def lift(request: Request, caller: UserAdmin, lock: str) -> Response:
    try:
        await lift_lock(portal_of(request), caller, lock)
    except NotFound:
        return RedirectResponse("/admin/locks?gone=1", 303)
    return RedirectResponse("/admin/locks?lifted=1", 303)
