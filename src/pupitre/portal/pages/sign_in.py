"""Signing in and out."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.errors import NotSignedIn, TooEarly
from pupitre.portal.account_schemas import MAX_NAME, MAX_PASSWORD
from pupitre.portal.context import origin_of, portal_of
from pupitre.portal.http.paths import own_path
from pupitre.portal.http.templates import render
from pupitre.portal.identity import devices, sessions
from pupitre.portal.identity.sessions import address_of, caller_of, clear_cookie, set_cookie, why_ended

router = APIRouter()


@router.get("/signin")
async def form(request: Request, to: Annotated[str, Query(alias="next", max_length=512)] = "/") -> Response:
    if await caller_of(request):
        return RedirectResponse(own_path(to), 303)
    context = {"name": "", "to": own_path(to), "refusal": None, "ended": await why_ended(request)}
    return render(request, "signin.html", context)


@router.post("/signin")
async def sign_in(
    request: Request,
    name: Annotated[str, Form(max_length=MAX_NAME)] = "",
    password: Annotated[str, Form(max_length=MAX_PASSWORD)] = "",
    to: Annotated[str, Form(alias="next", max_length=512)] = "/",
) -> Response:
    portal = portal_of(request)
    try:
        known_by = devices.cookie_of(request)
        token, known_by = await sessions.sign_in_browser(portal, name, password, address_of(request), known_by)
    except TooEarly as error:
        headers = {"Retry-After": str(round(error.retry_after + 0.499))}
        return _again(request, name, to, error.reason, 429, headers)
    except NotSignedIn as error:
        return _again(request, name, to, error.reason, 401, {})
    response = RedirectResponse(own_path(to), 303)
    if old := await caller_of(request):
        await sessions.end_session(portal, old, old.bearer)
    set_cookie(request, response, token)
    devices.set_cookie(response, known_by, secure=origin_of(request).startswith("https:"))
    return response


@router.post("/signout")
async def sign_out(request: Request) -> Response:
    portal = portal_of(request)
    if caller := await caller_of(request):
        await sessions.end_session(portal, caller, caller.bearer)
    response = RedirectResponse("/signin", 303)
    clear_cookie(request, response)
    return response


def _again(request: Request, name: str, to: str, refusal: str, status: int, headers: dict[str, str]) -> Response:
    context = {"name": name, "to": own_path(to), "refusal": refusal, "ended": None}
    return render(request, "signin.html", context, status=status, headers=headers)
