"""``/sessions``: from a name and a password to a token, and back."""

import time

from fastapi import APIRouter, Request, Response

from pupitre.portal.account_schemas import SessionExtended, SessionOut, SignIn, Token, session_out
from pupitre.portal.consoles import renewals
from pupitre.portal.context import portal_of
from pupitre.portal.identity import sessions
from pupitre.portal.identity.sessions import SignedIn, address_of
from pupitre.portal.schemas import moment

router = APIRouter(tags=["sessions"])


@router.post("/sessions", status_code=201)
async def sign_in(request: Request, body: SignIn) -> Token:
    """A bearer token for programs. It ends by itself after the session time."""
    portal = portal_of(request)
    token = await sessions.sign_in(portal, body.name, body.password, address_of(request))
    return Token(token=token, expires=moment(int((time.time() + portal.settings.session_hours * 3600) * 1000)))


@router.get("/sessions/current")
async def current(request: Request, caller: SignedIn) -> SessionOut:
    """Session of this request: until when its cookie or token is good."""
    return session_out(caller, portal_of(request).settings)


@router.post("/sessions/current/extend")
async def extend(request: Request, caller: SignedIn) -> SessionExtended:
    """Stay signed in, in a browser. Each of ``screens``, asked for once, makes an open console follow."""
    portal = portal_of(request)
    longer = await sessions.extend_session(portal, caller)
    shown = session_out(longer, portal.settings)
    return SessionExtended(**shown.model_dump(), screens=await renewals(portal, longer))


@router.delete("/sessions/current", status_code=204)
async def sign_out(request: Request, caller: SignedIn) -> Response:
    """End the token or the cookie that this request was made with."""
    await sessions.end_session(portal_of(request), caller, caller.bearer)
    return Response(status_code=204)
