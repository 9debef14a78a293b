"""Tickets: the portal's signed word with which a viewer goes to the gateway, or to the host itself, for one screen."""

import configparser
import hashlib
import io
import time
from contextlib import suppress

from pupitre.domain.desktop import OPEN_STATES, Desktop, DesktopState
from pupitre.domain.host import Host
from pupitre.domain.ticket import Purpose, Ticket, sign
from pupitre.errors import Conflict, NotFound
from pupitre.pki import issuing
from pupitre.portal.context import Portal, new_id
from pupitre.portal.desktops import desktop_of, desktops_of
from pupitre.portal.identity.sessions import Caller
from pupitre.timings import CONSOLE_TICKET, PICTURE_TICKET, PICTURE_WINDOW, VIEWER_TICKET


async def console_ticket(portal: Portal, caller: Caller, desktop_id: str, origin: str) -> tuple[str, str]:
    """The WebSocket address below ``origin``, whose cookie the browser has, and a ticket for it.

    Raises `NotFound`, and `Conflict` when it is not running.
    """
    desktop = await _open_desktop(portal, caller, desktop_id)
    ticket = _ticket(portal, caller, desktop, Purpose.CONSOLE, new_id(), time.time() + CONSOLE_TICKET)
    return f"ws{origin.removeprefix('http')}/gateway/v1/console/{desktop.id}", ticket


async def viewer_file(portal: Portal, caller: Caller, desktop_id: str) -> str:
    """A connection file for remote-viewer, good for one connection within `VIEWER_TICKET`.

    Raises `NotFound`, and `Conflict` when the desktop is not running or its host lets no native viewer in.

    Keys: remote-viewer(1), CONNECTION FILE. Its ``ca`` is for SPICE alone: for VNC the viewer looks for
    the authority in ``/etc/pki/CA/cacert.pem`` and ``~/.pki/CA/cacert.pem``, then at the system's.
    """
    desktop = await _open_desktop(portal, caller, desktop_id)
    host = _host_of(portal, desktop)
    if host.viewer_port is None:
        raise Conflict(
            f"The host {host.title} lets no native viewer in. Open the desktop in the browser,"
            " or have your administrator set viewer_port there."
        )
    file = configparser.RawConfigParser()
    file.optionxform = str  # type: ignore[assignment,method-assign]  # keys are written as they are
    file["virt-viewer"] = {
        "type": "vnc",
        "host": host.address,
        "port": str(host.viewer_port),
        "username": desktop.id,
        "password": _ticket(portal, caller, desktop, Purpose.VIEWER, new_id(), time.time() + VIEWER_TICKET),
        "delete-this-file": "1",
        "title": f"{desktop.image} - Pupitre",
    }
    text = io.StringIO()
    file.write(text, space_around_delimiters=False)
    return text.getvalue()


def authority(portal: Portal) -> bytes:
    """The certificate (PEM) by which viewers know our hosts. Raises `NotFound` when this machine has none."""
    try:
        return (issuing.directory(portal.settings, "portal") / "ca.crt").read_bytes()
    except OSError as error:
        raise NotFound("This portal has no copy of the authority's certificate. Run: pupitre pki create") from error


async def picture_path(portal: Portal, caller: Caller, desktop_id: str) -> str:
    """Path at which the gateway has a picture of the screen. Raises `NotFound` and `Conflict`."""
    desktop = await _open_desktop(portal, caller, desktop_id)
    window = int(time.time() // PICTURE_WINDOW)
    key = f"{caller.bearer}:{desktop.id}:{desktop.boot}:{window}"
    ticket = _ticket(
        portal,
        caller,
        desktop,
        Purpose.SCREENSHOT,
        hashlib.sha256(key.encode()).hexdigest()[:32],
        window * PICTURE_WINDOW + PICTURE_TICKET,
    )
    return f"/gateway/v1/screenshot/{desktop.id}?ticket={ticket}"


async def renewals(portal: Portal, caller: Caller) -> list[str]:
    """Pictures of every screen the caller may see: who asks for one tells its host how long the sign-in lasts now."""
    found = []
    for seen in await desktops_of(portal, caller.user):
        if seen.desktop.state in OPEN_STATES:
            with suppress(Conflict, NotFound):  # it ended meanwhile
                found.append(await picture_path(portal, caller, seen.desktop.id))
    return found


async def _open_desktop(portal: Portal, caller: Caller, desktop_id: str) -> Desktop:
    desktop = (await desktop_of(portal, caller.user, desktop_id)).desktop
    if desktop.state not in OPEN_STATES:
        over = {DesktopState.GONE, DesktopState.STOPPING, DesktopState.FAILED}
        remedy = "Start a new one." if desktop.state in over else "Its console opens as soon as it is running."
        raise Conflict(f"The desktop is {desktop.state}. {remedy}")
    return desktop


def _host_of(portal: Portal, desktop: Desktop) -> Host:
    host = portal.status.host(desktop.host)
    if host is None:
        raise Conflict("The desktop's host is not known at the moment. Try again in a few seconds.")
    return host


def _ticket(portal: Portal, caller: Caller, desktop: Desktop, purpose: Purpose, ticket_id: str, expires: float) -> str:
    host = _host_of(portal, desktop)
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
        until=caller.until / 1000,
    )
    return sign(claims, portal.signer)
