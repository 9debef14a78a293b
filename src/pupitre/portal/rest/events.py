"""``/events``: what changes for the caller, as server-sent events.

``command``, ``desktop``, ``image``, ``link`` and (administrators) ``host`` carry the
same JSON as their GET. A stream begins with all there is, then ``ready``; a client
that returns with the ``Last-Event-ID`` it had and missed nothing gets ``ready`` alone.
``resync``: the client was too slow; all there is follows.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel

from pupitre.domain.command import FINAL_STATES
from pupitre.domain.people.access import may_manage_hosts
from pupitre.domain.status import ClusterLink
from pupitre.errors import NotFound
from pupitre.portal.context import REFRESHED, Portal, portal_of
from pupitre.portal.desktops import desktops_of, latest_of
from pupitre.portal.hosts import hosts_of
from pupitre.portal.identity.sessions import Caller, SignedIn, caller_of
from pupitre.portal.live.change_feed import Changes
from pupitre.portal.schemas import command_out, desktop_out, host_out, image_out, link_out
from pupitre.runtime.timeouts import timeout
from pupitre.timings import KEEP_ALIVE

router = APIRouter(tags=["events"], dependencies=[REFRESHED])


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


@router.get("/events", response_class=EventStream)
async def events(
    request: Request, caller: SignedIn, last_event_id: Annotated[str | None, Header(max_length=64)] = None
) -> EventStream:
    headers = {"X-Accel-Buffering": "no"}  # no proxy keeps events for later
    return EventStream(_told(request, caller, last_event_id), headers=headers)


async def _told(request: Request, caller: Caller, last_event_id: str | None) -> AsyncIterator[bytes]:
    """Changes that come together are sent together: a frame and a task for each would cost more than the changes."""
    portal = portal_of(request)
    async with portal.feed.stream(caller.user) as stream:
        versions = portal.feed.versions
        first = b"" if last_event_id == str(versions) else b"".join(await _all(portal, caller))
        yield first + format_sse_event(event="ready", data_str="{}", id=str(versions), retry=2000)
        while True:
            try:
                async with timeout(KEEP_ALIVE):
                    changes = await stream.next()
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            if changes is None or await caller_of(request) is None:
                return  # the portal stops, or they have signed out meanwhile
            if changes.resync:
                found = [format_sse_event(event="resync", data_str="{}"), *await _all(portal, caller)]
            else:
                found = await _some(portal, caller, changes)
            if found:  # the id stands on the last one: what came half is asked for again
                yield b"".join(found[:-1]) + f"id: {changes.versions}\n".encode() + found[-1]


def _event(name: str, shape: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=shape.model_dump_json(by_alias=True))


def _links(links: list[ClusterLink]) -> list[bytes]:
    return [_event("link", link_out(link)) for link in links]


async def _all(portal: Portal, caller: Caller) -> list[bytes]:
    found = _links(portal.status.links)
    found += [_event("image", image_out(image)) for image in portal.status.images]
    if may_manage_hosts(caller.user):
        found += [_event("host", host_out(seen)) for seen in hosts_of(portal)]
    for command in await portal.commands.of_user(caller.user.id):
        if command.state not in FINAL_STATES:
            found.append(_event("command", command_out(command)))
    return found + [_event("desktop", desktop_out(seen)) for seen in await desktops_of(portal, caller.user)]


async def _some(portal: Portal, caller: Caller, changes: Changes) -> list[bytes]:
    found = _links(portal.status.links) if changes.links else []
    if changes.images:
        changed = [image for image in portal.status.images if image.id in changes.images]
        found += [_event("image", image_out(image)) for image in changed]
    if changes.hosts:
        found += [_event("host", host_out(seen)) for seen in hosts_of(portal) if seen.host.name in changes.hosts]
    found += [_event("command", command_out(command)) for _, command in sorted(changes.commands.items())]
    for desktop_id in sorted(changes.desktops):
        try:
            found.append(_event("desktop", desktop_out(await latest_of(portal, caller.user, desktop_id))))
        except NotFound:
            continue  # its last trace has been removed since
    return found
