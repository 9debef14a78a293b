"""Who is asking: cookies for browsers, bearer tokens for programs, and where requests may come from.

A token is 256 random bits; the database holds its SHA-256 only. A request with an
``Authorization`` header is judged by that header alone and never by its cookie.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.requests import HTTPConnection

from pupitre.clock import now_ms
from pupitre.domain.access import User
from pupitre.errors import Invalid, NotSignedIn
from pupitre.portal.audit import REFUSED, note
from pupitre.portal.context import Portal, origin_of, portal_of
from pupitre.store.accounts import SessionKind
from pupitre.store.audit import Act

COOKIE = "pupitre_session"
"""The gateway reads this cookie too: its name must not move."""
MAX_NAME = 64
DAY = 24 * 3600
_KINDS = {SessionKind.COOKIE: "in a browser", SessionKind.BEARER: "for programs"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent the request. ``bearer`` is the SHA-256 (hex) of the cookie or token; ``browser``: it was a cookie.

    ``origin`` is the address it came from. The sign-in ends at ``until`` (Unix ms) at the latest.
    """

    user: User
    bearer: str
    browser: bool
    origin: str = ""
    until: int = 0


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def credentials(connection: HTTPConnection) -> tuple[str, bool] | None:
    """The token of a request and whether a browser sent it as a cookie."""
    authorization = connection.headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        return (token.strip(), False) if scheme.lower() == "bearer" and token.strip() else None
    cookie = connection.cookies.get(COOKIE)
    return (cookie, True) if cookie else None


async def caller_of(request: Request) -> Caller | None:
    """The caller, or None when nobody is signed in."""
    found = credentials(request)
    if found is None:
        return None
    token, browser = found
    kind = SessionKind.COOKIE if browser else SessionKind.BEARER
    session = await portal_of(request).presence.session(digest(token))
    if session is None or session.kind is not kind:
        return None
    return Caller(session.user, session.token_hash, browser, address_of(request), session.expires)


async def signed_in(request: Request) -> Caller:
    """Raises `NotSignedIn`."""
    caller = await caller_of(request)
    if caller is None:
        raise NotSignedIn("Nobody is signed in, or the sign-in has ended. Sign in again.")
    request.state.caller = caller  # the frame of a page shows the name
    return caller


SignedIn = Annotated[Caller, Depends(signed_in)]


async def authenticate(portal: Portal, name: str, password: str, address: str, act: Act = Act.SIGN_IN) -> User:
    """The user with that password, to do ``act``. Raises `NotSignedIn`, and `TooEarly` after too many failures."""
    name = name.strip()[:MAX_NAME]
    async with portal.passwords.turn:
        await portal.throttle.check(name, address)
        user, password_hash = await portal.accounts.user_named(name) or (None, None)
        if await portal.passwords.verify(password, password_hash) and user is not None:
            return user
        await portal.throttle.failed(name, address)
    portal.metrics.failed_sign_ins.inc()
    await note(portal, act, user=user, name=name, origin=address, outcome=REFUSED, detail="Wrong name or password.")
    raise NotSignedIn("The name or the password is wrong. Check both and try again.")


async def sign_in(portal: Portal, name: str, password: str, address: str, kind: SessionKind) -> str:
    """A new cookie or token for whoever has that password. Raises `NotSignedIn` and `TooEarly`."""
    user = await authenticate(portal, name, password, address)
    token = await open_session(portal, user, kind)
    await note(portal, Act.SIGN_IN, user=user, origin=address, detail=_KINDS[kind])
    return token


async def make_token(portal: Portal, caller: Caller, seconds: float) -> str:
    """A token for the caller's programs."""
    token = await open_session(portal, caller.user, SessionKind.BEARER, seconds=seconds)
    days = f"for {seconds / DAY:.0f} days"
    await note(portal, Act.TOKEN_MADE, user=caller.user, origin=caller.origin, subject=mark(digest(token)), detail=days)
    return token


async def end_session(portal: Portal, caller: Caller, token_hash: str) -> None:
    """End the caller's sign-in or token with that hash, if they have it: this one (then they sign out) or another."""
    sessions = await portal.accounts.sessions_of(caller.user.id, now=now_ms())
    session = next((session for session in sessions if session.token_hash == token_hash), None)
    if session is None or not await portal.accounts.close_session(token_hash):
        return
    portal.presence.forget()
    act = Act.SIGN_OUT if token_hash == caller.bearer else Act.TOKEN_REVOKED
    detail = _KINDS[session.kind]
    await note(portal, act, user=caller.user, origin=caller.origin, subject=mark(token_hash), detail=detail)


def mark(token_hash: str) -> str:
    """What tells one token from another in lists and in the audit log, and opens nothing."""
    return token_hash[:8]


async def open_session(portal: Portal, user: User, kind: SessionKind, *, seconds: float | None = None) -> str:
    """A new token; this is the only moment at which it can be read."""
    token = secrets.token_urlsafe(32)
    now = time.time()
    expires = now + (seconds if seconds is not None else portal.settings.session_hours * 3600)
    await portal.accounts.open_session(digest(token), user.id, kind, now=int(now * 1000), expires=int(expires * 1000))
    return token


async def change_password(portal: Portal, caller: Caller, current: str, new: str) -> None:
    """Set a new password; every sign-in and token of the user ends. Raises `NotSignedIn`, `Invalid`, `TooEarly`."""
    user = caller.user
    await authenticate(portal, user.name, current, caller.origin, Act.PASSWORD_CHANGED)
    if new == current:
        raise Invalid("The new password is the old one. Choose another.")
    await portal.accounts.set_password(user.id, await portal.passwords.hash(new))
    portal.presence.forget()
    await note(portal, Act.PASSWORD_CHANGED, user=user, origin=caller.origin, subject=user.name)


def set_cookie(request: Request, response: Response, token: str) -> None:
    """No Domain, Path=/ and, under https, Secure: what the prefix ``__Host-`` would ask for."""
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(portal_of(request).settings.session_hours * 3600),
        path="/",
        secure=origin_of(request).startswith("https:"),
        httponly=True,
        samesite="lax",
    )


def clear_cookie(request: Request, response: Response) -> None:
    secure = origin_of(request).startswith("https:")
    response.delete_cookie(COOKIE, path="/", secure=secure, httponly=True, samesite="lax")


def address_of(request: Request) -> str:
    """The browser's address, which `middleware.Forwarded` has put in place of a proxy's."""
    return request.client.host if request.client else "unknown"
