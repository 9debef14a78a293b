"""Tickets: the portal's signed word with which a browser goes to the gateway for one screen."""

import hashlib
import time

from pupitre.domain.desktop import OPEN_STATES, Desktop, DesktopState
from pupitre.domain.ticket import Purpose, Ticket, sign
from pupitre.errors import Conflict
from pupitre.portal.context import Portal, new_id
from pupitre.portal.desktops import desktop_of
from pupitre.portal.sessions import Caller

CONSOLE_SECONDS = 30
PICTURE_SECONDS = 60
PICTURE_WINDOW = 10
"""Within so many seconds the same picture has the same address, so that browsers may keep it."""


async def console_ticket(portal: Portal, caller: Caller, desktop_id: str) -> tuple[str, str]:
    """The WebSocket address and a ticket for it. Raises `NotFound`, and `Conflict` when it is not running."""
    desktop = await _open_desktop(portal, caller, desktop_id)
    ticket = await _ticket(portal, caller, desktop, Purpose.CONSOLE, new_id(), time.time() + CONSOLE_SECONDS)
    origin = portal.settings.origin
    return f"ws{origin.removeprefix('http')}/gateway/v1/console/{desktop.id}", ticket


async def picture_path(portal: Portal, caller: Caller, desktop_id: str) -> str:
    """Where the gateway has a picture of the screen. Raises `NotFound` and `Conflict`."""
    desktop = await _open_desktop(portal, caller, desktop_id)
    window = int(time.time() // PICTURE_WINDOW)
    key = f"{caller.bearer}:{desktop.id}:{desktop.boot}:{window}"
    ticket = await _ticket(
        portal,
        caller,
        desktop,
        Purpose.SCREENSHOT,
        hashlib.sha256(key.encode()).hexdigest()[:32],
        window * PICTURE_WINDOW + PICTURE_SECONDS,
    )
    return f"/gateway/v1/screenshot/{desktop.id}?ticket={ticket}"


async def _open_desktop(portal: Portal, caller: Caller, desktop_id: str) -> Desktop:
    desktop = (await desktop_of(portal, caller.user, desktop_id)).desktop
    if desktop.state not in OPEN_STATES:
        over = {DesktopState.GONE, DesktopState.STOPPING, DesktopState.FAILED}
        mend = "Start a new one." if desktop.state in over else "Its console opens as soon as it is running."
        raise Conflict(f"The desktop is {desktop.state}. {mend}")
    return desktop


async def _ticket(
    portal: Portal, caller: Caller, desktop: Desktop, purpose: Purpose, ticket_id: str, expires: float
) -> str:
    host = await portal.status.host(desktop.host) if desktop.host else None
    if host is None:
        raise Conflict("The desktop's host is not known at the moment. Try again in a few seconds.")
    claims = Ticket(
        id=ticket_id,
        purpose=purpose,
        user=caller.user.id,
        desktop=desktop.id,
        boot=desktop.boot,
        host=host.name,
        address=host.address,
        port=host.port,
        expires=expires,
        bearer=caller.bearer,
        browser=caller.browser,
    )
    return sign(claims, portal.signer)
