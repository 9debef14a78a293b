"""Locking people out and guessing passwords, on a running portal. The limit is 2 a minute here.

Addresses are a proxy's word, as the portal takes it from one on its own machine.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from pupitre.domain.people.throttle import limits, of_stranger
from pupitre.portal.identity import devices
from pupitre.store.sign_in_failures import Failures
from tests.rigs.portal_site import PASSWORD, Site, open_site

pytestmark = [pytest.mark.anyio, pytest.mark.attack]
N = 2
SESSIONS = "/api/v1/sessions"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, sign_in_per_minute=N, behind_proxy=True) as site:
        yield site


async def sign_in(client: httpx2.AsyncClient, address: str, password: str = PASSWORD, name: str = "teacher") -> int:
    """By a program, which no account knows."""
    client.cookies.clear()
    answer = await client.post(
        SESSIONS, json={"name": name, "password": password}, headers={"X-Forwarded-For": address}
    )
    return answer.status_code


class Browser:
    """One that keeps its cookies between sign-ins, as browsers do for that page."""

    def __init__(self, site: Site, client: httpx2.AsyncClient, cookie: str = "") -> None:
        self.site = site
        self.client = client
        self.cookie = cookie

    async def sign_in(self, address: str, password: str = PASSWORD, name: str = "teacher") -> int:
        self.client.cookies.clear()
        headers = {"X-Forwarded-For": address, "Origin": self.site.url}
        if self.cookie:
            headers["Cookie"] = f"{devices.COOKIE}={self.cookie}"
        answer = await self.client.post("/signin", data={"name": name, "password": password}, headers=headers)
        if devices.COOKIE in answer.cookies:
            self.cookie = answer.cookies[devices.COOKIE]
            (said,) = [one for one in answer.headers.get_list("set-cookie") if one.startswith(devices.COOKIE)]
            assert {"HttpOnly", "Path=/signin", "SameSite=strict"} <= {part.strip() for part in said.split(";")}
        return answer.status_code


async def test_a_stranger_locks_a_name_at_their_address_only(site: Site) -> None:
    async with site.client() as client:
        assert [await sign_in(client, "192.0.2.1", "wrong") for _ in range(N + 1)] == [401, 401, 429]
        assert await sign_in(client, "192.0.2.1") == 429
        assert await sign_in(client, "192.0.2.2") == 201


async def test_many_addresses_lock_no_known_browser(site: Site) -> None:
    async with site.client() as client:
        own, strange = Browser(site, client), Browser(site, client)
        assert await own.sign_in("192.0.2.1") == 303
        failures = Failures(site.accounts.database)
        for stranger in range(10 * N):
            await failures.count(of_stranger("teacher", f"198.51.100.{stranger}"), limits(N), now=_now())
        assert await strange.sign_in("192.0.2.9") == 429, "from everywhere"
        assert await own.sign_in("192.0.2.9") == 303
        assert await own.sign_in("192.0.2.9", name="student") == 303
        assert await own.sign_in("192.0.2.9") == 303, "one browser knows several people"


async def test_a_locked_address_lets_known_browsers_in(site: Site) -> None:
    async with site.client() as client:
        own = Browser(site, client)
        assert await own.sign_in("192.0.2.1") == 303
        failures = Failures(site.accounts.database)
        for guess in range(60 * N):
            await failures.count(of_stranger(f"pupil{guess}", "192.0.2.1"), limits(N), now=_now())
        assert await sign_in(client, "192.0.2.1", name="student") == 429
        assert await own.sign_in("192.0.2.1") == 303


async def test_a_stolen_cookie_gives_no_free_guesses(site: Site) -> None:
    async with site.client() as client:
        own = Browser(site, client)
        assert await own.sign_in("192.0.2.1") == 303
        thief = Browser(site, client, own.cookie)
        answers = [await thief.sign_in("203.0.113.5", "wrong") for _ in range(2 * N + 1)]
        assert answers == [401] * 2 * N + [429], "a few of its own, then as a stranger"
        assert await thief.sign_in("203.0.113.5") == 429
        assert await own.sign_in("192.0.2.1") == 303, "its owner is a stranger now, and not locked"


async def test_no_other_cookie_and_no_old_one_is_known(site: Site) -> None:
    async with site.client() as client:
        own, other = Browser(site, client), Browser(site, client)
        assert await own.sign_in("192.0.2.1") == 303
        assert await other.sign_in("192.0.2.1", name="student") == 303
        user, device, ends, signature = own.cookie.split(".")
        for _ in range(N):
            assert await sign_in(client, "192.0.2.1", "wrong") == 401
        for forged in (
            other.cookie,
            ".".join((site.users["teacher"].id, *other.cookie.split(".")[1:])),
            ".".join((user, device, str(int(ends) + 1), signature)),
            ".".join((user, device, "\u0661" * 9, signature)),
            "...", "~" * 500, f"{user}.{device}.{ends}.",
        ):  # fmt: skip
            assert await Browser(site, client, forged.encode("ascii", "replace").decode()).sign_in("192.0.2.1") == 429
        assert await own.sign_in("192.0.2.1") == 303
        async with site.in_browser("teacher") as browser:
            changed = await browser.post("/account/password", data={"current": PASSWORD, "new": "another long one"})
            assert changed.status_code == 303
        assert await own.sign_in("192.0.2.1", "another long one") == 429, "a new password forgets every browser"
        assert await own.sign_in("192.0.2.2", "another long one") == 303


async def test_who_is_signed_in_changes_their_password_in_a_lock(site: Site) -> None:
    async with site.client() as client, site.in_browser("teacher") as browser:
        for _ in range(N):
            assert await sign_in(client, "127.0.0.1", "wrong") == 401
        for said in ("The present password is wrong", "The present password is wrong", "Too many failed"):
            page = await browser.post("/account/password", data={"current": "not it", "new": "another long one"})
            assert said in page.text
    async with site.in_browser("teacher") as browser:
        changed = await browser.post("/account/password", data={"current": PASSWORD, "new": "another long one"})
        assert changed.status_code == 303


async def test_a_lock_outlives_a_restart_of_the_portal(site: Site) -> None:
    async with site.client() as client:
        for _ in range(N):
            assert await sign_in(client, "192.0.2.1", "wrong") == 401
        await site.stop_web()
        await site.start_web()
        assert await sign_in(client, "192.0.2.1") == 429


async def test_what_is_refused_unseen_costs_no_hash(site: Site) -> None:
    async with site.client() as client:
        begun = time.process_time()
        for _ in range(N):
            assert await sign_in(client, "192.0.2.1", "wrong") == 401
        hashed = (time.process_time() - begun) / N
        begun = time.process_time()
        for _ in range(10):
            assert await sign_in(client, "192.0.2.1") == 429
        assert (time.process_time() - begun) / 10 < hashed / 2


async def test_an_administrator_sees_and_lifts_locks(site: Site) -> None:
    async with site.client() as client, site.as_user("admin") as admin, site.in_browser("admin") as browser:
        assert "Nobody is locked out." in (await browser.get("/admin/locks")).text
        for name in ("teacher", "student"):
            for _ in range(N):
                assert await sign_in(client, "192.0.2.1", "wrong", name) == 401
        found = (await admin.get("/api/v1/locks")).json()["items"]
        assert {(lock["counted"], lock["name"], lock["address"], lock["failures"]) for lock in found} == {
            ("pair", "teacher", "192.0.2.1", N),
            ("pair", "student", "192.0.2.1", N),
        }
        page = (await browser.get("/admin/locks")).text
        assert "Sign-ins as teacher from 192.0.2.1" in page
        mine = next(lock["id"] for lock in found if lock["name"] == "teacher")
        assert (await admin.delete(f"/api/v1/locks/{mine}")).status_code == 204
        assert (await admin.delete(f"/api/v1/locks/{mine}")).status_code == 404
        assert await sign_in(client, "192.0.2.1") == 201
        other = next(lock["id"] for lock in found if lock["name"] == "student")
        assert (await browser.post(f"/admin/locks/{other}/lift")).headers["location"] == "/admin/locks?lifted=1"
        assert await sign_in(client, "192.0.2.1", name="student") == 201
        for action, count in (("sign_in_locked", 2), ("lock_lifted", 2)):
            entries = (await admin.get("/api/v1/audit", params={"action": action})).json()["items"]
            assert {entry["subject"] for entry in entries} == {"teacher", "student"}, action
            assert len(entries) == count


def _now() -> int:
    return time.time_ns() // 1_000_000
