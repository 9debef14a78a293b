"""Sign-ins: cookies for browsers, bearer tokens for programs, and where requests may come from.

A token is 256 random bits; the database holds its SHA-256 only. A request with an
``Authorization`` header is judged by that header alone and never by its cookie.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.requests import HTTPConnection

from pupitre.domain.people.access import User
from pupitre.domain.people.password import normalized
from pupitre.domain.people.sign_in import REASON_KEPT, extended
from pupitre.domain.people.throttle import network_of
from pupitre.domain.people.username import MAX_LENGTH, canonical
from pupitre.errors import Conflict, Invalid, NotSignedIn
from pupitre.portal.audit import REFUSED, note
from pupitre.portal.context import Portal, origin_of, portal_of
from pupitre.portal.labels import lasting, lock_words
from pupitre.runtime.clock import now_ms
from pupitre.store.accounts import SessionKind
from pupitre.store.audit import Act

COOKIE = "pupitre_session"
"""The gateway reads this cookie too: its name must not move."""
DAY = 24 * 3600
_KINDS = {SessionKind.COOKIE: "in a browser", SessionKind.BEARER: "for programs"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Sender of a request. ``bearer`` is the SHA-256 (hex) of the cookie or token; ``browser``: it was a cookie.

    ``origin`` is the address it came from. The sign-in began at ``since`` and ends at ``until`` (Unix ms) at the
    latest, unless it is extended.
    """

    user: User
    bearer: str
    browser: bool
    origin: str = ""
    until: int = 0
    since: int = 0


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
    session = await portal_of(request).session_cache.session(digest(token))
    if session is None or session.kind is not kind:
        return None
    return Caller(session.user, session.token_hash, browser, address_of(request), session.expires, session.created)


async def signed_in(request: Request) -> Caller:
    """Raises `NotSignedIn`."""
    caller = await caller_of(request)
    if caller is None:
        raise NotSignedIn("Nobody is signed in, or the sign-in has ended. Sign in again.")
    request.state.caller = caller  # the frame of a page shows the name
    return caller


SignedIn = Annotated[Caller, Depends(signed_in)]


Known = Callable[[User, str], str | None]
"""Of a user and their password hash: the id of this browser, if that account knows it."""


def known_by_nobody(_user: User, _password_hash: str) -> None:
    """A program, or a browser without a cookie."""
    return


async def authenticate(
    portal: Portal, name: str, password: str, address: str, act: Act = Act.SIGN_IN, *, known: Known = known_by_nobody
) -> tuple[User, str]:
    """The user with that password, to do ``act``, and the password's hash.

    Raises `NotSignedIn`, and after too many failures `TooEarly`, without a look at the password.
    """
    name = canonical(name) or name.strip()[:MAX_LENGTH]
    async with portal.passwords.turn:
        found = await portal.accounts.user_named(name)
        user, password_hash = found or (None, None)
        device = known(*found) if found else None
        counters = await portal.throttle.check(name, network_of(address), device)
        if await portal.passwords.verify(password, password_hash) and found is not None:
            return found
        locked = await portal.throttle.failed(counters)
    portal.metrics.failed_sign_ins.inc()
    await note(portal, act, user=user, name=name, origin=address, outcome=REFUSED, detail="Wrong name or password.")
    for lock in locked:
        detail = lock_words(lock.counter)
        await note(portal, Act.SIGN_IN_LOCKED, user=user, name=name, origin=address, subject=name, detail=detail)
    raise NotSignedIn("The name or the password is wrong. Check both and try again.")


async def sign_in(portal: Portal, name: str, password: str, address: str) -> str:
    """A new token for the program that has that password. Raises `NotSignedIn` and `TooEarly`."""
    user, _ = await authenticate(portal, name, password, address)
    return await _signed_in(portal, user, address, SessionKind.BEARER)


async def sign_in_browser(
    portal: Portal, name: str, password: str, address: str, device_cookie: str
) -> tuple[str, str]:
    """A new cookie for the browser that sent that password, and what its other cookie is to be, by which it is known.

    Raises `NotSignedIn` and `TooEarly`.
    """

    def known(user: User, password_hash: str) -> str | None:
        return portal.devices.find(device_cookie, user.id, password_hash, now=time.time())

    user, password_hash = await authenticate(portal, name, password, address, known=known)
    token = await _signed_in(portal, user, address, SessionKind.COOKIE)
    return token, portal.devices.remember(device_cookie, user.id, password_hash, now=time.time())


async def _signed_in(portal: Portal, user: User, address: str, kind: SessionKind) -> str:
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
    portal.session_cache.forget()
    act = Act.SIGN_OUT if token_hash == caller.bearer else Act.TOKEN_REVOKED
    detail = _KINDS[session.kind]
    await note(portal, act, user=caller.user, origin=caller.origin, subject=mark(token_hash), detail=detail)


def mark(token_hash: str) -> str:
    """Mark that tells one token from another in lists and in the audit log, and opens nothing."""
    return token_hash[:8]


async def open_session(portal: Portal, user: User, kind: SessionKind, *, seconds: float | None = None) -> str:
    """A new token; this is the only moment at which it can be read."""
    token = secrets.token_urlsafe(32)
    now = time.time()
    expires = now + (seconds if seconds is not None else portal.settings.session_hours * 3600)
    await portal.accounts.open_session(digest(token), user.id, kind, now=int(now * 1000), expires=int(expires * 1000))
    return token


async def extend_session(portal: Portal, caller: Caller) -> Caller:
    """The caller with a later end of their sign-in, as far as settings allow. Raises `Conflict` for tokens."""
    if not caller.browser:
        raise Conflict("A token is not extended. Make a new one before it ends.")
    settings, now = portal.settings, now_ms()
    until = extended(caller.since, caller.until, now=now, length=settings.session_ms, most=settings.session_most_ms)
    if until > caller.until:
        if not await portal.accounts.extend_session(caller.bearer, until, now=now):
            raise NotSignedIn("The sign-in has ended. Sign in again.")
        portal.session_cache.forget()
        await note(portal, Act.SIGN_IN_EXTENDED, user=caller.user, origin=caller.origin, subject=mark(caller.bearer))
    return replace(caller, until=until)


async def why_ended(request: Request) -> str | None:
    """Why the sign-in of this browser is over, in a sentence; None for a browser that had none."""
    found = credentials(request)
    if found is None or not found[1]:
        return None
    lasted = await portal_of(request).accounts.run_out(digest(found[0]), now=now_ms())
    if lasted is None:
        return "Your sign-in has ended: somebody signed out, or your password or role was changed."
    return f"Your sign-in ended after {lasting(lasted)}."


async def change_password(portal: Portal, caller: Caller, current: str, new: str) -> None:
    """Set a new password; every sign-in and token of the user ends. Raises `NotSignedIn`, `Invalid`, `TooEarly`."""
    user = caller.user
    # Whoever is signed in is no stranger; who has stolen a sign-in has the few guesses of a stolen browser.
    act = Act.PASSWORD_CHANGED
    await authenticate(portal, user.name, current, caller.origin, act, known=lambda *_: caller.bearer)
    if normalized(new) == normalized(current):
        raise Invalid("The new password is the old one. Choose another.")
    hashed = await portal.passwords.hash(new, user.name, user.display_name)
    await portal.accounts.set_password(user.id, hashed)
    portal.session_cache.forget()
    await note(portal, Act.PASSWORD_CHANGED, user=user, origin=caller.origin, subject=user.name)


def set_cookie(request: Request, response: Response, token: str) -> None:
    """No Domain, Path=/ and, under https, Secure: what the prefix ``__Host-`` would ask for.

    It outlives the sign-in, so that the next page can say why that has ended.
    """
    response.set_cookie(
        COOKIE,
        token,
        max_age=(portal_of(request).settings.session_most_ms + REASON_KEPT) // 1000,
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
