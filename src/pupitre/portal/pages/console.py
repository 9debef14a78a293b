"""One desktop's screen. The page's script asks for a ticket and speaks to the gateway."""

from fastapi import APIRouter, Request, Response

from pupitre.portal.consoles import viewer_file
from pupitre.portal.context import portal_of
from pupitre.portal.desktops import desktop_of
from pupitre.portal.http.templates import render
from pupitre.portal.identity.sessions import SignedIn
from pupitre.portal.labels import console_words

router = APIRouter()


@router.get("/desktops/{desktop}")
async def console(request: Request, caller: SignedIn, desktop: str) -> Response:
    portal = portal_of(request)
    seen = await desktop_of(portal, caller.user, desktop)
    names = {image.id: image.name for image in portal.status.images}
    host = portal.status.host(seen.desktop.host)
    context = {
        "seen": seen,
        "name": names.get(seen.desktop.image, seen.desktop.image),
        "host_title": host.title if host else "Its host",
        "words": console_words(),
    }
    return render(request, "console.html", context)


@router.post("/desktops/{desktop}/viewer")
async def viewer(request: Request, caller: SignedIn, desktop: str) -> Response:
    """The file with which remote-viewer opens the screen once, within a minute."""
    text = await viewer_file(portal_of(request), caller, desktop)
    headers = {"Content-Disposition": f'attachment; filename="{desktop}.vv"'}
    return Response(text, media_type="application/x-virt-viewer", headers=headers)
