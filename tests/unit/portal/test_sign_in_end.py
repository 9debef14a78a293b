"""The end of a sign-in: people are warned of it, may put it off, and are told why it came. WCAG 2.2.1."""

import re
import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, expect

from pupitre.domain.people.throttle import limits, of_stranger
from pupitre.store.sign_in_failures import Failures
from tests.rigs.portal_browser import a_browser, accessible, fits, opened, without_scripts
from tests.rigs.portal_site import Site, firmware_guest, now, open_site

pytestmark = [pytest.mark.anyio]
CURRENT = "/api/v1/sessions/current"
SOON = 100_000
"""Milliseconds that a sign-in has left in these tests: within the warning, and enough for a busy machine."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, session_hours=1, session_most_hours=3, sign_in_per_minute=1) as site:
        yield site


@pytest.fixture
async def minute(tmp_path: Path) -> AsyncIterator[Site]:
    """Sign-ins last for a minute, of which the last third is warned of."""
    async with open_site(tmp_path, session_hours=1 / 60, session_most_hours=1) as site:
        yield site


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


def change(site: Site, **columns: int) -> None:
    """Every sign-in is as if it had been so from the beginning."""
    with sqlite3.connect(site.settings.home / "db/accounts.sqlite") as database:
        for column, value in columns.items():
            database.execute(f"update sessions set {column} = ?", (value,))  # noqa: S608 - a name of ours


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() * 1000


async def test_an_extension_goes_as_far_as_settings_allow(site: Site) -> None:
    async with site.in_browser("student") as browser:
        begun = now()
        change(site, created=begun - 1_800_000, expires=begun + 60_000)
        before = (await browser.get(CURRENT)).json()
        extended = (await browser.post(f"{CURRENT}/extend")).json()
        assert abs(moment(before["expires"]) - begun - 60_000) < 1000
        assert abs(moment(extended["expires"]) - begun - 3_600_000) < 60_000
        assert moment(extended["latest"]) == begun - 1_800_000 + 3 * 3_600_000
        assert extended["screens"] == []
        change(site, created=begun - 10_000_000)
        at_most = (await browser.post(f"{CURRENT}/extend")).json()
        assert moment(at_most["expires"]) == moment(extended["expires"]), "never earlier"
        change(site, expires=now() - 1)
        while (await browser.get(CURRENT)).status_code != 401:  # an answer is remembered for half a second
            assert now() - begun < 60_000
        assert (await browser.post(f"{CURRENT}/extend")).status_code == 401
    async with site.as_user("student") as program:
        refused = await program.post(f"{CURRENT}/extend")
        assert (refused.status_code, (await program.get(CURRENT)).json()["latest"]) == (409, None)
    async with site.as_user("admin") as admin:
        (entry,) = (await admin.get("/api/v1/audit", params={"action": "sign_in_extended"})).json()["items"]
        assert entry["actor"] == "student"


async def test_the_page_for_signing_in_says_why(site: Site) -> None:
    async with site.in_browser("student") as browser:
        change(site, created=now() - 12 * 3_600_000 - 5, expires=now() - 5)
        answer = await browser.get("/admin/audit?text=a%20b&user=ana")
        path = answer.headers["location"]
        assert path == f"/signin?next={quote('/admin/audit?text=a%20b&user=ana')}"
        page = (await browser.get(path)).text
        assert "Your sign-in ended after 12 hours. Sign in to go on where you were." in page
        assert 'value="/admin/audit?text=a%20b&amp;user=ana"' in page
        sent = await browser.post("/desktops", data={"image": "tiny"}, headers={"Referer": f"{site.url}/?a=b"})
        assert sent.status_code == 401
        assert 'href="/signin?next=/%3Fa%3Db"' in sent.text
        live = await browser.post("/desktops", headers={"HX-Request": "true", "HX-Current-URL": f"{site.url}/account"})
        assert live.headers["hx-redirect"] == "/signin?next=/account"
    async with site.in_browser("student") as browser:
        await site.accounts.set_role(site.users["student"].id, site.users["student"].role)
        assert "your password or role was changed" in (await browser.get("/signin")).text
    async with site.client() as stranger:
        assert "Your sign-in" not in (await stranger.get("/signin")).text


async def open_warned(page: Page, path: str) -> None:
    """The page at ``path`` after `change`: the portal remembers for half a second how a sign-in was."""
    warning = page.locator("#sign-in-warning")
    await page.goto(path)
    while not await warning.is_visible():
        await page.goto(path)
    await warned(page)


async def warned(page: Page, timeout: float = 10_000) -> None:
    await expect(page.locator("#sign-in-warning")).to_be_visible(timeout=timeout)
    await expect(page.locator("#sign-in-left")).to_have_text(re.compile(r"^[01]:[0-9]{2}$"))


@pytest.mark.browser
async def test_every_tab_warns_and_follows_an_extension(site: Site, chromium: Browser) -> None:
    async with opened(site, chromium) as page:
        change(site, expires=now() + SOON)
        await open_warned(page, "/")
        other = await page.context.new_page()
        await open_warned(other, f"{site.url}/account")
        for tab in (page, other):
            await expect(tab.locator("#sign-in-said")).to_contain_text("Your sign-in ends in")
        assert await page.evaluate("document.activeElement === document.body"), "it takes no focus"
        await accessible(page)
        await page.get_by_role("button", name="Stay signed in").focus()
        await page.keyboard.press("Enter")
        for tab in (page, other):
            await expect(tab.locator("#sign-in-warning")).to_be_hidden()
        await expect(page.locator("#sign-in-said")).to_contain_text("You stay signed in until")
        assert await page.evaluate("document.activeElement.id") == "main", "whose focus went with the button"


@pytest.mark.browser
async def test_every_tab_goes_to_sign_in_and_comes_back(minute: Site, chromium: Browser) -> None:
    site = minute
    async with opened(site, chromium) as page:
        await page.goto("/account?changed=1")
        await expect(page.locator("#ended")).to_contain_text("Your sign-in ended after 60 seconds", timeout=150_000)
        assert page.url == f"{site.url}/signin?next={quote('/account?changed=1', safe='')}"
        await page.fill("#name", "student")
        await page.fill("#password", "open sesame 42")
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{site.url}/account?changed=1")
        other = await page.context.new_page()
        await other.goto(f"{site.url}/")
        await other.get_by_role("button", name="Sign out").click()
        await page.wait_for_url("**/signin?next=*")


@pytest.mark.browser
async def test_an_extended_sign_in_cuts_no_running_console(minute: Site, chromium: Browser) -> None:
    """In full screen, by the keys that lead out of the screen."""
    site = minute
    desktop = await site.running("student")
    async with opened(site, chromium) as page, firmware_guest(site, desktop.id):
        await page.goto(f"/desktops/{desktop.id}")
        until = int(await page.locator("#sign-in-end").get_attribute("data-ends") or 0)
        main = page.locator("main")
        await expect(main).to_have_attribute("data-state", "connected", timeout=30_000)
        await page.click("#fullscreen")
        inside = "() => document.fullscreenElement?.contains(document.getElementById('sign-in-warning'))"
        await page.wait_for_function(inside)
        await warned(page, timeout=90_000)
        await page.locator("#screen canvas").focus()
        await page.keyboard.press("Control+Alt+Shift")
        await expect(page.get_by_role("button", name="Stay signed in")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#sign-in-warning")).to_be_hidden()
        await page.wait_for_function("(until) => Date.now() > until + 1500", arg=until, timeout=120_000, polling=200)
        await expect(main).to_have_attribute("data-state", "connected")
        assert await page.evaluate("pupitreConsole.attempts") == 1, "it was never cut"


@pytest.mark.browser
async def test_without_scripts_a_button_extends_too(site: Site, chromium: Browser) -> None:
    async with without_scripts(site, chromium, "student") as page:
        change(site, expires=now() + SOON)
        await open_warned(page, "/account")
        await page.locator("#sign-in-warning").get_by_role("button", name="Stay signed in").click()
        await page.wait_for_url(f"{site.url}/account")
        await expect(page.locator("#sign-in-warning")).to_be_hidden()


@pytest.mark.browser
@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_pages_about_sign_ins_fit_and_are_accessible(
    site: Site, chromium: Browser, tmp_path: Path, dark: bool, phone: bool
) -> None:
    table, locked = limits(site.settings.sign_in_per_minute), of_stranger("teacher", "192.0.2.1")[1:2]
    for _ in range(10 * site.settings.sign_in_per_minute):
        await Failures(site.accounts.database).count(locked, table, now=now())
    async with opened(site, chromium, "admin", dark=dark, phone=phone) as page:
        change(site, expires=now() + SOON)
        for name, path in (("warning", "/"), ("locks", "/admin/locks")):
            await open_warned(page, path)
            await fits(page)
            await accessible(page)
            await page.screenshot(path=tmp_path / f"{name}.png")
        await expect(page.locator("[data-lock]")).to_contain_text("Sign-ins as teacher from everywhere")
        ended = now() - 1000
        change(site, created=ended - 12 * 3_600_000, expires=ended)
        while "/signin" not in page.url:
            await page.goto("about:blank")  # the script of an open page leaves it by itself once the sign-in has ended
            await page.goto("/admin/locks")
        await expect(page.locator("#ended")).to_contain_text("Your sign-in ended after 12 hours")
        await fits(page)
        await accessible(page)
        await page.screenshot(path=tmp_path / "signin.png")
