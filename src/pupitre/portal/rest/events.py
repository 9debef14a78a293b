"""``/events``: what changes for the caller, as server-sent events.

``command``, ``desktop``, ``image``, ``link`` and (administrators) ``host`` carry the
same JSON as their GET. A stream begins with all there is, then ``ready``; a client
that returns with the ``Last-Event-ID`` it had and missed nothing gets ``ready`` alone.
``resync``: the client was too slow; all there is follows.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from pupitre.domain.access import may_manage_hosts
from pupitre.domain.command import FINAL_STATES
from pupitre.domain.status import Link
from pupitre.errors import NotFound
from pupitre.portal.context import Portal, portal_of
from pupitre.portal.desktops import desktop_of, desktops_of
from pupitre.portal.events import News
from pupitre.portal.hosts import hosts_of
from pupitre.portal.sessions import Caller, SignedIn, caller_of
from pupitre.portal.shapes import command_out, desktop_out, host_out, image_out, link_out

router = APIRouter(tags=["events"])


@router.get("/events", response_class=EventSourceResponse)
async def events(
    request: Request, caller: SignedIn, last_event_id: Annotated[str | None, Header(max_length=64)] = None
) -> AsyncIterator[ServerSentEvent]:
    portal = portal_of(request)
    async with portal.feed.stream(caller.user) as stream:
        versions = portal.feed.versions
        if last_event_id != str(versions):
            for event in await _all(portal, caller):
                yield event
        yield ServerSentEvent(event="ready", data={}, id=str(versions), retry=2000)
        while (news := await stream.next()) is not None:
            if await caller_of(request) is None:
                return  # signed out meanwhile
            if news.resync:
                yield ServerSentEvent(event="resync", data={})
                found = await _all(portal, caller)
            else:
                found = await _some(portal, caller, news)
            for event in found[:-1]:
                yield event
            if found:  # the id stands on the last one: what came half is asked for again
                yield ServerSentEvent(event=found[-1].event, data=found[-1].data, id=str(news.versions))


def _event(name: str, shape: BaseModel) -> ServerSentEvent:
    return ServerSentEvent(event=name, data=shape)


def _links(links: list[Link]) -> list[ServerSentEvent]:
    return [_event("link", link_out(link)) for link in links]


async def _all(portal: Portal, caller: Caller) -> list[ServerSentEvent]:
    found = _links(await portal.status.links())
    found += [_event("image", image_out(image)) for image in await portal.status.images()]
    if may_manage_hosts(caller.user):
        found += [_event("host", host_out(seen)) for seen in await hosts_of(portal)]
    for command in await portal.commands.of_user(caller.user.id):
        if command.state not in FINAL_STATES:
            found.append(_event("command", command_out(command)))
    return found + [_event("desktop", desktop_out(seen)) for seen in await desktops_of(portal, caller.user)]


async def _some(portal: Portal, caller: Caller, news: News) -> list[ServerSentEvent]:
    found = _links(await portal.status.links()) if news.links else []
    if news.images:
        images = await portal.status.images()
        found += [_event("image", image_out(image)) for image in images if image.id in news.images]
    if news.hosts:
        found += [_event("host", host_out(seen)) for seen in await hosts_of(portal) if seen.host.name in news.hosts]
    found += [_event("command", command_out(command)) for _, command in sorted(news.commands.items())]
    for desktop_id in sorted(news.desktops):
        try:
            found.append(_event("desktop", desktop_out(await desktop_of(portal, caller.user, desktop_id))))
        except NotFound:
            continue  # its last trace has been removed since
    return found
