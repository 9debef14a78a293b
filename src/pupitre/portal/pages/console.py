"""One desktop's screen. The page's script asks for a ticket and speaks to the gateway."""

from fastapi import APIRouter, Request, Response

from pupitre.portal.context import portal_of
from pupitre.portal.desktops import desktop_of
from pupitre.portal.sessions import SignedIn
from pupitre.portal.views import render

router = APIRouter()


@router.get("/desktops/{desktop}")
async def console(request: Request, caller: SignedIn, desktop: str) -> Response:
    portal = portal_of(request)
    seen = await desktop_of(portal, caller.user, desktop)
    names = {image.id: image.name for image in await portal.status.images()}
    return render(request, "console.html", {"seen": seen, "name": names.get(seen.desktop.image, seen.desktop.image)})
