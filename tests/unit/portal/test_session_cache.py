"""A sign-in that has ended opens nothing any more: at once in this process, and soon in the others."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from pupitre.domain.people.access import Role
from pupitre.portal.identity.session_cache import SessionCache
from pupitre.portal.identity.sessions import digest
from pupitre.store.accounts import Accounts, SessionKind
from tests.rigs.portal_site import PASSWORD, Site, open_site

pytestmark = pytest.mark.anyio
PATH = "/api/v1/status"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


async def test_closed_session_is_refused_at_once(site: Site) -> None:
    """A session that was closed here is refused at once however many ask."""
    token = await site.session("teacher", SessionKind.BEARER)
    closed = False
    wrong: list[int] = []

    async def ask(client: httpx2.AsyncClient) -> None:
        while True:
            after = closed
            answer = await client.get(PATH)
            if after and answer.status_code != 401:
                wrong.append(answer.status_code)
            if answer.status_code == 401:
                return
            assert answer.status_code == 200

    async with site.client(token) as client, asyncio.timeout(20):
        assert (await client.get(PATH)).status_code == 200
        asking = asyncio.gather(*(ask(client) for _ in range(20)))
        async with site.client(token) as other:
            assert (await other.delete("/api/v1/sessions/current")).status_code == 204
        closed = True
        await asking
    assert wrong == []


async def until_refused(client: httpx2.AsyncClient) -> float:
    begun = asyncio.get_running_loop().time()
    while (await client.get(PATH)).status_code != 401:
        assert asyncio.get_running_loop().time() - begun < 10
    return asyncio.get_running_loop().time() - begun


async def test_session_closed_elsewhere_is_forgotten_in_time(site: Site) -> None:
    """``site.accounts`` is another connection, as another process has; the last one tells nobody."""
    accounts, teacher = site.accounts, site.users["teacher"]
    database = site.settings.home / "db/accounts.sqlite"

    def untold() -> None:
        with sqlite3.connect(database) as connection:
            connection.execute("delete from sessions")
        connection.close()

    token = await site.session("teacher", SessionKind.BEARER)
    async with site.client(token) as client:
        assert (await client.get(PATH)).status_code == 200
        await accounts.close_session(digest(token))
        await until_refused(client)
    async with site.as_user("teacher") as client:
        assert (await client.get(PATH)).status_code == 200
        await accounts.set_role(teacher.id, Role.STUDENT)
        await until_refused(client)
    async with site.as_user("teacher") as client:
        assert (await client.get(PATH)).status_code == 200
        untold()
        await until_refused(client)


async def test_a_new_password_ends_all_but_the_browser_that_set_it(site: Site) -> None:
    async with site.in_browser("student") as browser, site.as_user("student") as program:
        assert (await program.get(PATH)).status_code == 200
        changed = await browser.post("/account/password", data={"current": PASSWORD, "new": "another long one"})
        assert changed.status_code == 303
        assert (await program.get(PATH)).status_code == 401
        assert (await browser.get(PATH)).status_code == 200


class Counting(Accounts):
    """Counts the looks into the database."""

    looks = 0

    async def live(self, token_hashes, *, now):  # type: ignore[no-untyped-def]  # as the one it extends
        self.looks += 1
        return await super().live(token_hashes, now=now)


async def test_many_who_ask_at_once_cost_few_looks(site: Site) -> None:
    accounts = Counting(site.accounts.database)
    hashes = [digest(await site.session(name, SessionKind.BEARER)) for name in ("student", "other") * 50]
    session_cache = SessionCache(accounts)
    found = await asyncio.gather(*(session_cache.session(hash) for hash in hashes), session_cache.session("none"))
    assert [session.token_hash if session else None for session in found] == [*hashes, None]
    assert accounts.looks <= 2
    await asyncio.gather(*(session_cache.session(hash) for hash in hashes))
    assert accounts.looks <= 2, "remembered"
    session_cache.forget()
    await session_cache.session(hashes[0])
    assert accounts.looks <= 3
