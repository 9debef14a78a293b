"""Pieces of pages as server-sent events: a page asks once and is told from then on."""

from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from pupitre.domain.people.access import User
from pupitre.errors import NotFound
from pupitre.portal.context import portal_of
from pupitre.portal.hosts import host_called
from pupitre.portal.http.roles import HostKeeper
from pupitre.portal.http.templates import fragment
from pupitre.portal.identity.sessions import Caller, SignedIn, caller_of
from pupitre.portal.live.events import News
from pupitre.portal.pages.desktops import board
from pupitre.portal.pages.host import host_board
from pupitre.portal.pages.hosts import hosts_board, latest_orders
from pupitre.portal.pages.link import banner
from pupitre.runtime.timeouts import timeout
from pupitre.timings import KEEP_ALIVE

router = APIRouter()
Pieces = Callable[[News | None], Awaitable[list[ServerSentEvent]]]


@router.get("/live/desktops", response_class=EventSourceResponse)
async def desktops(request: Request, caller: SignedIn) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)

    async def pieces(news: News | None) -> list[ServerSentEvent]:
        found = []
        if _links(news):
            found.append(_piece("banner", fragment(request, "_banner.html", await banner(portal))))
        if news is None or news.desktops or news.images or news.resync:
            found.append(_piece("board", fragment(request, "_board.html", await board(portal, caller.user))))
        return found

    async for event in _live(request, caller, pieces):
        yield event


@router.get("/live/hosts", response_class=EventSourceResponse)
async def hosts(request: Request, caller: HostKeeper) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)

    async def pieces(news: News | None) -> list[ServerSentEvent]:
        found = []
        if _links(news):
            found.append(_piece("banner", fragment(request, "_banner.html", await banner(portal))))
        if _hosts(news):
            found.append(_piece("hosts", fragment(request, "_hosts.html", await hosts_board(portal, caller.user))))
        return found

    async for event in _live(request, caller, pieces):
        yield event


@router.get("/live/hosts/{host}", response_class=EventSourceResponse)
async def one_host(request: Request, caller: HostKeeper, host: str) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)

    async def pieces(news: News | None) -> list[ServerSentEvent]:
        found = []
        if _links(news):
            found.append(_piece("banner", fragment(request, "_banner.html", await banner(portal))))
        if _hosts(news):
            found.append(_piece("host", await _host(request, caller.user, host)))
        return found

    async for event in _live(request, caller, pieces):
        yield event


async def _host(request: Request, user: User, name: str) -> str:
    portal = portal_of(request)
    try:
        seen = await host_called(portal, name)
    except NotFound:
        orders = await latest_orders(portal, user, name)
        return fragment(request, "_host_gone.html", {"name": name, "orders": orders})
    return fragment(request, "_host.html", await host_board(portal, user, seen))


def _links(news: News | None) -> bool:
    return news is None or news.links or news.resync


def _hosts(news: News | None) -> bool:
    return news is None or bool(news.hosts or news.commands) or news.resync


async def _live(request: Request, caller: Caller, pieces: Pieces) -> AsyncIterator[ServerSentEvent]:
    """All pieces now, then those that changed, until the sign-in or the portal ends."""
    async with portal_of(request).feed.stream(caller.user) as stream:
        for event in await pieces(None):
            yield event
        while True:
            try:
                async with timeout(KEEP_ALIVE):
                    news = await stream.next()
            except TimeoutError:
                yield ServerSentEvent(comment="ping")
                continue
            if news is None or not await caller_of(request):
                return
            for event in await pieces(news):
                yield event


def _piece(name: str, html: str) -> ServerSentEvent:
    return ServerSentEvent(event=name, raw_data=html)
