"""``/sessions``: from a name and a password to a token, and back."""

import time

from fastapi import APIRouter, Request, Response

from pupitre.portal import sessions
from pupitre.portal.context import portal_of
from pupitre.portal.sessions import SignedIn, address_of
from pupitre.portal.shapes import SignIn, Token, moment
from pupitre.store.accounts import SessionKind

router = APIRouter(tags=["sessions"])


@router.post("/sessions", status_code=201)
async def sign_in(request: Request, body: SignIn) -> Token:
    """A bearer token for programs. It ends by itself after the session time."""
    portal = portal_of(request)
    token = await sessions.sign_in(portal, body.name, body.password, address_of(request), SessionKind.BEARER)
    return Token(token=token, expires=moment(int((time.time() + portal.settings.session_hours * 3600) * 1000)))


@router.delete("/sessions/current", status_code=204)
async def sign_out(request: Request, caller: SignedIn) -> Response:
    """End the token or the cookie that this request was made with."""
    await sessions.end_session(portal_of(request), caller, caller.bearer)
    return Response(status_code=204)
