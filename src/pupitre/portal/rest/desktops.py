"""``/desktops``: the caller's own. Another's desktop looks as if it did not exist."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from pupitre.portal import consoles
from pupitre.portal.context import REFRESHED, origin_of, portal_of
from pupitre.portal.desktops import desktop_of, desktops_of, start, stop
from pupitre.portal.identity.sessions import SignedIn
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.schemas import (
    Accepted,
    ConsoleOut,
    DesktopAccepted,
    DesktopOut,
    DesktopRequest,
    Page,
    desktop_out,
)

router = APIRouter(tags=["desktops"])


class ViewerFile(Response):
    media_type = "application/x-virt-viewer"


class Certificate(Response):
    media_type = "application/x-pem-file"


@router.post("/desktops", status_code=202)
async def start_desktop(
    request: Request, response: Response, caller: SignedIn, body: DesktopRequest
) -> DesktopAccepted:
    """Ask for a desktop. The answer comes when the wish is on disk; the desktop follows."""
    command = await start(portal_of(request), caller, body.image, edition=body.edition)
    response.headers["Location"] = f"/api/v1/commands/{command.id}"
    return DesktopAccepted(command=command.id, desktop=command.desktop or "")


@router.get("/desktops", dependencies=[REFRESHED])
async def desktops(request: Request, caller: SignedIn, limit: Limit = 100, after: After = None) -> Page[DesktopOut]:
    """The caller's desktops, newest first, from the moment they were asked for."""
    found = await desktops_of(portal_of(request), caller.user)
    return page(found, desktop_out, lambda seen: seen.id, limit, after, descending=True)


@router.get("/desktops/{desktop}")
async def desktop(request: Request, caller: SignedIn, desktop: str) -> DesktopOut:
    return desktop_out(await desktop_of(portal_of(request), caller.user, desktop))


@router.delete("/desktops/{desktop}", status_code=202, responses={204: {"description": "Put away: it never ran."}})
async def stop_desktop(request: Request, caller: SignedIn, desktop: str) -> Accepted:
    """Stop a desktop. What was done on it is lost."""
    command = await stop(portal_of(request), caller, desktop)
    if command is None:
        return Response(status_code=204)  # type: ignore[return-value]  # FastAPI sends a Response as it is
    location = {"Location": f"/api/v1/commands/{command.id}"}
    return JSONResponse({"command": command.id}, 202, headers=location)  # type: ignore[return-value]  # as above


@router.post("/desktops/{desktop}/console")
async def console(request: Request, caller: SignedIn, desktop: str) -> ConsoleOut:
    """A ticket for the desktop's screen: for one connection, within 30 seconds."""
    url, ticket = await consoles.console_ticket(portal_of(request), caller, desktop, origin_of(request))
    return ConsoleOut(url=url, ticket=ticket)


@router.post("/desktops/{desktop}/viewer", response_class=ViewerFile)
async def viewer(request: Request, caller: SignedIn, desktop: str) -> ViewerFile:
    """A connection file for remote-viewer: for one connection, within 60 seconds. Some hosts let no viewer in (409)."""
    text = await consoles.viewer_file(portal_of(request), caller, desktop)
    disposition = f'attachment; filename="{desktop}.vv"'
    return ViewerFile(text, headers={"Content-Disposition": disposition, "Cache-Control": "no-store"})


@router.get("/authority", response_class=Certificate)
async def authority(request: Request, _caller: SignedIn) -> Certificate:
    """The certificate (PEM) by which native viewers know the hosts: ``~/.pki/CA/cacert.pem`` for remote-viewer."""
    disposition = 'attachment; filename="cacert.pem"'
    return Certificate(consoles.authority(portal_of(request)), headers={"Content-Disposition": disposition})


@router.get("/desktops/{desktop}/screenshot", status_code=307, response_class=RedirectResponse)
async def screenshot(request: Request, caller: SignedIn, desktop: str) -> RedirectResponse:
    """A picture of the screen, from the gateway."""
    path = await consoles.picture_path(portal_of(request), caller, desktop)
    return RedirectResponse(path, 307)
