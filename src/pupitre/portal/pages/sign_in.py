"""Signing in and out."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.errors import NotSignedIn, TooEarly
from pupitre.portal import sessions
from pupitre.portal.context import portal_of
from pupitre.portal.sessions import address_of, caller_of, clear_cookie, set_cookie
from pupitre.portal.views import render
from pupitre.store.accounts import SessionKind

router = APIRouter()


def own_path(path: str) -> str:
    """``path`` if it stays on this site, else the first page: no open redirect."""
    plain = path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else "/"


@router.get("/signin")
async def form(request: Request, to: Annotated[str, Query(alias="next", max_length=512)] = "/") -> Response:
    if await caller_of(request):
        return RedirectResponse(own_path(to), 303)
    return render(request, "signin.html", {"name": "", "to": own_path(to), "refusal": None})


@router.post("/signin")
async def sign_in(
    request: Request,
    name: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=512)] = "",
    to: Annotated[str, Form(alias="next", max_length=512)] = "/",
) -> Response:
    portal = portal_of(request)
    try:
        token = await sessions.sign_in(portal, name, password, address_of(request), SessionKind.COOKIE)
    except TooEarly as error:
        headers = {"Retry-After": str(round(error.retry_after + 0.499))}
        return _again(request, name, to, error.reason, 429, headers)
    except NotSignedIn as error:
        return _again(request, name, to, error.reason, 401, {})
    response = RedirectResponse(own_path(to), 303)
    if old := await caller_of(request):
        await sessions.end_session(portal, old, old.bearer)
    set_cookie(request, response, token)
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
    context = {"name": name, "to": own_path(to), "refusal": refusal}
    return render(request, "signin.html", context, status=status, headers=headers)
