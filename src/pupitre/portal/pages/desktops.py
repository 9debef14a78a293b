"""The first page: my desktops, and what I can start."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from pupitre.domain.desktop import COUNTED_STATES
from pupitre.domain.image import CopyState
from pupitre.domain.people.access import User, may_edit_images
from pupitre.portal.context import REFRESHED, Portal, portal_of
from pupitre.portal.desktops import desktop_of, desktops_of, limit_of, start, stop
from pupitre.portal.http.templates import render
from pupitre.portal.identity.sessions import SignedIn
from pupitre.portal.pages.link import banner, freshness

router = APIRouter()


async def board(portal: Portal, user: User) -> dict[str, Any]:
    """Context of the board, for a whole page and for an event."""
    images = sorted(portal.status.images, key=lambda image: (image.state is not CopyState.READY, image.name))
    desktops = await desktops_of(portal, user)
    return {
        "desktops": desktops,
        "images": images,
        "names": {image.id: image.name for image in images},
        "editable": portal.status.editable if may_edit_images(user) else frozenset(),
        "limit": limit_of(portal, user),
        "have": sum(seen.desktop.state in COUNTED_STATES for seen in desktops),
        "host_titles": {host.name: host.title for host in portal.status.hosts},
        **freshness(portal),
    }


@router.get("/", dependencies=[REFRESHED])
async def home(request: Request, caller: SignedIn) -> Response:
    portal = portal_of(request)
    return render(request, "home.html", await board(portal, caller.user) | banner(portal))


@router.post("/desktops")
async def start_desktop(
    request: Request,
    caller: SignedIn,
    image: Annotated[str, Form(max_length=64)],
    edition: Annotated[bool, Form()] = False,
) -> Response:
    portal = portal_of(request)
    await start(portal, caller, image, edition=edition)
    return await _changed(request, portal, caller.user)


@router.get("/desktops/{desktop}/stop")
async def confirm_stop(request: Request, caller: SignedIn, desktop: str) -> Response:
    """The confirmation for browsers without scripts; others show a dialog."""
    portal = portal_of(request)
    seen = await desktop_of(portal, caller.user, desktop)
    names = {image.id: image.name for image in portal.status.images}
    return render(request, "stop.html", {"seen": seen, "names": names})


@router.post("/desktops/{desktop}/stop")
async def stop_desktop(request: Request, caller: SignedIn, desktop: str) -> Response:
    """Stop a desktop, or put away one that failed."""
    portal = portal_of(request)
    await stop(portal, caller, desktop)
    return await _changed(request, portal, caller.user)


async def _changed(request: Request, portal: Portal, user: User) -> Response:
    if "hx-request" in request.headers:
        return render(request, "_board.html", await board(portal, user))
    return RedirectResponse("/", 303)
