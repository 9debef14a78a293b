"""One's own account: password and API tokens."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.domain.people.password import MIN_LENGTH
from pupitre.errors import Invalid, NotSignedIn, RequestError, TooEarly
from pupitre.portal.account_schemas import MAX_PASSWORD
from pupitre.portal.consoles import renewals
from pupitre.portal.context import portal_of
from pupitre.portal.http.paths import own_path
from pupitre.portal.http.templates import render
from pupitre.portal.identity.sessions import (
    DAY,
    SignedIn,
    change_password,
    end_session,
    extend_session,
    make_token,
    open_session,
    set_cookie,
)
from pupitre.runtime.clock import now_ms
from pupitre.store.accounts import SessionKind

router = APIRouter()
TOKEN_DAYS = (1, 30, 365)


async def _page(
    request: Request, caller: SignedIn, *, token: str | None = None, refusal: str | None = None, status: int = 200
) -> Response:
    sessions = await portal_of(request).accounts.sessions_of(caller.user.id, now=now_ms())
    context = {
        "sessions": [(session, session.token_hash == caller.bearer) for session in sessions],
        "token": token,
        "refusal": refusal,
        "days": TOKEN_DAYS,
        "screens": await renewals(portal_of(request), caller) if caller.browser else [],
        "min_length": MIN_LENGTH,
    }
    return render(request, "account.html", context, status=status)


@router.get("/account")
async def account(request: Request, caller: SignedIn) -> Response:
    return await _page(request, caller)


@router.post("/account/tokens")
async def add_token(request: Request, caller: SignedIn, days: Annotated[int, Form()]) -> Response:
    """The one answer that shows the token."""
    if days not in TOKEN_DAYS:
        raise Invalid(f"A token lives for {', '.join(str(choice) for choice in TOKEN_DAYS)} days. Choose one of these.")
    token = await make_token(portal_of(request), caller, days * DAY)
    return await _page(request, caller, token=token)


@router.post("/account/tokens/{token_hash}/end")
async def end_token(request: Request, caller: SignedIn, token_hash: str) -> Response:
    await end_session(portal_of(request), caller, token_hash)
    return RedirectResponse("/account", 303)


@router.post("/account/extend")
async def extend(
    request: Request, caller: SignedIn, to: Annotated[str, Form(alias="next", max_length=512)] = "/account"
) -> Response:
    """Stay signed in, for browsers without scripts; others ask the REST API."""
    await extend_session(portal_of(request), caller)
    return RedirectResponse(own_path(to), 303)


@router.post("/account/password")
async def set_password(
    request: Request,
    caller: SignedIn,
    current: Annotated[str, Form(max_length=MAX_PASSWORD)],
    new: Annotated[str, Form(max_length=MAX_PASSWORD)],
) -> Response:
    portal = portal_of(request)
    try:
        await change_password(portal, caller, current, new)
    except RequestError as error:
        words = "The present password is wrong." if isinstance(error, NotSignedIn) else error.reason
        status = 429 if isinstance(error, TooEarly) else 422
        return await _page(request, caller, refusal=words, status=status)
    response = RedirectResponse("/account?changed=1", 303)
    set_cookie(request, response, await open_session(portal, caller.user, SessionKind.COOKIE))
    return response
