"""Live events: who hears what, and what happens to whoever listens too slowly."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pupitre.domain.command import Command, CommandState, DestroyDesktop
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.people.access import Role, User
from pupitre.domain.status import ClusterLink, Position, Rows
from pupitre.portal.http.metrics import Metrics
from pupitre.portal.live.change_feed import ChangeFeed, Changes, Stream, Versions
from pupitre.portal.live.status_mirror import StatusMirror
from pupitre.store.accounts import SessionKind
from pupitre.store.status import SeenKeys
from tests.rigs import databases
from tests.rigs.portal_site import Site, an_image, open_site

pytestmark = pytest.mark.anyio


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


class Heard:
    """The events of one stream, one after the other."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._lines = answer.aiter_lines()
        self.last_id = ""

    async def next(self) -> tuple[str, Any]:
        """The name and the data of the next event."""
        name, data = "", ""
        async with asyncio.timeout(10):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data += value
                elif field == "id":
                    self.last_id = value
                elif not line and name:
                    return name, json.loads(data)
        raise EOFError

    async def until(self, name: str) -> list[tuple[str, Any]]:
        """The events before the next one of that name."""
        found = []
        while (event := await self.next())[0] != name:
            found.append(event)
        return found


@asynccontextmanager
async def listening(client: httpx2.AsyncClient, last_id: str | None = None) -> AsyncIterator[Heard]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with client.stream("GET", "/api/v1/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Heard(answer)


async def test_stream_begins_with_all_and_continues_with_changes(site: Site) -> None:
    """A stream begins with all there is and goes on with what changes."""
    async with site.as_user("student") as client, listening(client) as heard:
        first = await heard.until("ready")
        assert [name for name, _ in first] == ["link", "image"]
        assert first[1][1]["id"] == "tiny"
        asked = (await client.post("/api/v1/desktops", json={"image": "tiny"})).json()
        command = await site.endpoint.next_command()
        await site.endpoint.run(command)
        states: list[str] = []
        while not states or states[-1] != "running":
            name, data = await heard.next()
            if name == "desktop":
                assert data["id"] == asked["desktop"]
                states.append(data["state"])
            else:
                assert (name, data["id"]) == ("command", asked["command"])
        await site.endpoint.images(an_image("tiny", "Tiny Linux", description="Another word."))
        while (event := await heard.next())[0] != "image":
            pass
        assert event[1]["description"] == "Another word."


async def test_streams_tell_only_own_desktops_and_admins_hosts(site: Site) -> None:
    """Nobody hears of anothers desktop and only administrators of hosts."""
    async with site.as_user("other") as other, listening(other) as heard, site.as_user("admin") as admin:
        await heard.until("ready")
        await site.running("student")
        await site.endpoint.host("host-9")
        await site.endpoint.link(False, "gone")
        name, data = await heard.next()
        assert (name, data["connected"]) == ("link", False), "the first thing that concerns them"
        async with listening(admin) as all_there_is:
            names = [name for name, _ in await all_there_is.until("ready")]
            assert names.count("host") == 2
            assert "desktop" not in names


async def test_return_with_last_id_gets_only_missed_changes(site: Site) -> None:
    """Who returns with the last id gets what was missed or nothing."""
    async with site.as_user("student") as client:
        async with listening(client) as heard:
            await heard.until("ready")
        async with listening(client, heard.last_id) as again:
            assert await again.until("ready") == []
        desktop = await site.running("student")
        async with listening(client, heard.last_id) as later:
            events = await later.until("ready")
            assert [data["id"] for name, data in events if name == "desktop"] == [desktop.id]


async def test_a_stream_ends_with_its_session(site: Site) -> None:
    async with site.as_user("student") as client, listening(client) as heard:
        await heard.until("ready")
        await client.delete("/api/v1/sessions/current")
        await site.endpoint.link(False, "something happens")
        with pytest.raises(EOFError):
            await heard.next()


async def test_pages_are_told_in_pieces_of_html(site: Site) -> None:
    async with (
        site.in_browser("student") as browser,
        browser.stream("GET", "/live/desktops") as answer,
        asyncio.timeout(10),
    ):
        lines = answer.aiter_lines()
        names = []
        async for line in lines:
            if line.startswith("event: "):
                names.append(line)
            if names == ["event: banner", "event: board"] and not line:
                break
        await site.running("student")
        async for line in lines:
            if 'data-state="running"' in line:
                break


STUDENT = User("u", "student", Role.STUDENT)


async def test_news_that_wait_are_folded_together() -> None:
    stream = Stream(STUDENT, Versions(0, 0))
    for version in range(1, 1000):
        command = Command("c", "u", DestroyDesktop("d"), CommandState.QUEUED, version, version)
        assert stream.put(Changes(Versions(version, 0), desktops={"d"}, commands={"c": command}))
    news = await stream.next()
    assert news
    assert (news.desktops, news.commands, news.versions) == ({"d"}, {"c": command}, Versions(999, 0))
    assert news.commands["c"].created == 999


async def test_slow_stream_begins_anew_and_is_bounded() -> None:
    """A stream that is too slow begins anew and keeps no more than its limit."""
    stream = Stream(STUDENT, Versions(0, 0))
    fits = [stream.put(Changes(Versions(n, 0), desktops={str(n)})) for n in range(Stream.LIMIT + 1)]
    assert fits == [True] * Stream.LIMIT + [False]
    news = await stream.next()
    assert news
    assert news.resync
    assert not news.desktops
    stream.end()
    assert await stream.next() is None


async def test_a_stopping_server_does_not_wait_for_streams(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        client = site.client(await site.session("student", SessionKind.BEARER))
        answer = await client.send(client.build_request("GET", "/api/v1/events"), stream=True)
        heard = Heard(answer)
        await heard.until("ready")
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    with pytest.raises((EOFError, httpx2.HTTPError)):
        await heard.next()
    await client.aclose()


async def test_steps_of_one_desktop_are_heard_in_order(site: Site) -> None:
    async with site.as_user("student") as client, listening(client) as heard:
        await heard.until("ready")
        await client.post("/api/v1/desktops", json={"image": "tiny"})
        command = await site.endpoint.next_command()
        seen: list[str] = []
        for state in (DesktopState.PREPARING, DesktopState.BOOTING, DesktopState.RUNNING):
            await site.endpoint.desktop(command, state)
            while not seen or seen[-1] != state:
                name, data = await heard.next()
                if name == "desktop":
                    seen.append(data["state"])
        steps = ["requested", "preparing", "booting", "running"]
        assert list(dict.fromkeys(seen)) in (steps, steps[1:])


async def test_removed_host_is_told_to_administrators(tmp_path: Path) -> None:
    """A host that is taken away is news to those who manage hosts."""
    host = Host("host-1", HostState.READY, "127.0.0.1", 1, False, since=1)
    async with databases.commands(tmp_path) as commands, databases.status(tmp_path) as status:
        await status.set_link(ClusterLink("main", True, 1))
        feed = ChangeFeed(commands, StatusMirror(status), Metrics(), confirm_every=60)
        admin = User("0190aaaa-0000-7000-8000-0000000000a1", "admin", Role.ADMIN)
        async with feed.listening(), feed.stream(admin) as stream:

            async def hosts() -> set[str]:
                async with asyncio.timeout(10):
                    while (news := await stream.next()) is not None:
                        if news.hosts:
                            return news.hosts
                raise EOFError

            await status.apply("main", Rows(hosts=(host,)))
            assert await hosts() == {"host-1"}
            await status.retain("main", SeenKeys(), Position(1, 2))
            assert await hosts() == {"host-1"}


async def test_stream_before_databases_begins_anew(tmp_path: Path) -> None:
    """A stream that came before the databases begins anew with them."""
    admin = User("0190aaaa-0000-7000-8000-0000000000a1", "admin", Role.ADMIN)
    host = Host("host-1", HostState.READY, "127.0.0.1", 1, False, since=1)
    async with databases.commands(tmp_path) as commands, databases.status(tmp_path) as status:
        await status.apply("main", Rows(hosts=(host,)))
        mirror = StatusMirror(status)
        feed = ChangeFeed(commands, mirror, Metrics(), confirm_every=60)
        async with AsyncExitStack() as exit:
            async with databases.out_of_order(tmp_path / "status.sqlite"):
                await exit.enter_async_context(feed.listening())
                stream = await exit.enter_async_context(feed.stream(admin))
                assert not feed.versions.status
            async with asyncio.timeout(10):
                news = await stream.next()
            assert news
            assert news.resync
            assert news.versions == feed.versions
            assert mirror.hosts == [host]
