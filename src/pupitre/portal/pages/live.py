"""Pieces of pages as server-sent events: a page asks once and is told from then on."""

from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from pupitre.domain.people.access import User
from pupitre.errors import NotFound
from pupitre.portal.context import REFRESHED, portal_of
from pupitre.portal.hosts import host_called
from pupitre.portal.http.roles import HostAdmin
from pupitre.portal.http.templates import fragment
from pupitre.portal.identity.sessions import Caller, SignedIn, caller_of
from pupitre.portal.live.change_feed import Changes
from pupitre.portal.pages.desktops import board
from pupitre.portal.pages.host import host_board
from pupitre.portal.pages.hosts import hosts_board, latest_orders
from pupitre.portal.pages.link import banner
from pupitre.runtime.timeouts import timeout
from pupitre.timings import KEEP_ALIVE

router = APIRouter()
Pieces = Callable[[Changes | None], Awaitable[list[ServerSentEvent]]]


@router.get("/live/desktops", response_class=EventSourceResponse, dependencies=[REFRESHED])
async def desktops(request: Request, caller: SignedIn) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)

    async def pieces(changes: Changes | None) -> list[ServerSentEvent]:
        found = []
        if _links(changes):
            found.append(_piece("banner", fragment(request, "_banner.html", banner(portal))))
        if changes is None or changes.desktops or changes.images or changes.resync:
            found.append(_piece("board", fragment(request, "_board.html", await board(portal, caller.user))))
        return found

    async for event in _live(request, caller, pieces):
        yield event


@router.get("/live/hosts", response_class=EventSourceResponse, dependencies=[REFRESHED])
async def hosts(request: Request, caller: HostAdmin) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)

    async def pieces(changes: Changes | None) -> list[ServerSentEvent]:
        found = []
        if _links(changes):
            found.append(_piece("banner", fragment(request, "_banner.html", banner(portal))))
        if _hosts(changes):
            found.append(_piece("hosts", fragment(request, "_hosts.html", await hosts_board(portal, caller.user))))
        return found

    async for event in _live(request, caller, pieces):
        yield event


@router.get("/live/hosts/{host}", response_class=EventSourceResponse, dependencies=[REFRESHED])
async def one_host(request: Request, caller: HostAdmin, host: str) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)

    async def pieces(changes: Changes | None) -> list[ServerSentEvent]:
        found = []
        if _links(changes):
            found.append(_piece("banner", fragment(request, "_banner.html", banner(portal))))
        if _hosts(changes):
            found.append(_piece("host", await _host(request, caller.user, host)))
        return found

    async for event in _live(request, caller, pieces):
        yield event


async def _host(request: Request, user: User, name: str) -> str:
    portal = portal_of(request)
    try:
        seen = host_called(portal, name)
    except NotFound:
        orders = await latest_orders(portal, user, name)
        return fragment(request, "_host_gone.html", {"name": name, "orders": orders})
    return fragment(request, "_host.html", await host_board(portal, user, seen))


def _links(changes: Changes | None) -> bool:
    return changes is None or changes.links or changes.resync


def _hosts(changes: Changes | None) -> bool:
    return changes is None or bool(changes.hosts or changes.commands) or changes.resync


async def _live(request: Request, caller: Caller, pieces: Pieces) -> AsyncIterator[ServerSentEvent]:
    """All pieces now, then those that changed, until the sign-in or the portal ends."""
    async with portal_of(request).feed.stream(caller.user) as stream:
        for event in await pieces(None):
            yield event
        while True:
            try:
                async with timeout(KEEP_ALIVE):
                    changes = await stream.next()
            except TimeoutError:
                yield ServerSentEvent(comment="ping")
                continue
            if changes is None or not await caller_of(request):
                return
            for event in await pieces(changes):
                yield event


def _piece(name: str, html: str) -> ServerSentEvent:
    return ServerSentEvent(event=name, raw_data=html)
