"""Pages as people see them: a signed-in Chromium on a laptop or a phone, in light or dark, for everyone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.conftest import CHROMIUM
from tests.rigs.portal_site import PASSWORD, Site

LAPTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    site: Site, chromium: Browser, name: str | None = "student", *, dark: bool = False, phone: bool = False
) -> AsyncIterator[Page]:
    """A page of a signed-in user, on which no script fails and nothing is blocked by our own policy."""
    context = await chromium.new_context(
        viewport=PHONE if phone else LAPTOP,  # type: ignore[arg-type]
        color_scheme="dark" if dark else "light",
        has_touch=phone,
        is_mobile=phone,
        base_url=site.url,
    )
    page = await context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            wrong.append(message.text)

    page.on("console", said)
    if name:
        await page.goto("/")
        await page.fill("#name", name)
        await page.fill("#password", PASSWORD)
        await page.press("#password", "Enter")
        await page.wait_for_url(site.url + "/")
    yield page
    assert wrong == []
    await context.close()


async def accessible(page: Page) -> None:
    """No serious violation that axe can find."""
    results = await Axe().run(page)
    found = [
        (violation["id"], violation["impact"], [node["html"] for node in violation["nodes"]])
        for violation in results.response["violations"]
        if violation["impact"] in {"serious", "critical"}
    ]
    assert found == []


async def fits(page: Page) -> None:
    """Nothing is wider than the screen."""
    assert await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@asynccontextmanager
async def without_scripts(site: Site, chromium: Browser, name: str) -> AsyncIterator[Page]:
    """A page of a signed-in user whose browser runs no scripts."""
    context = await chromium.new_context(java_script_enabled=False, base_url=site.url)
    page = await context.new_page()
    await page.goto("/")
    await page.fill("#name", name)
    await page.fill("#password", PASSWORD)
    await page.press("#password", "Enter")
    await page.wait_for_url(site.url + "/")
    yield page
    await context.close()


async def reach(page: Page, target: object) -> None:
    """Press Tab until ``target`` has the focus."""
    for _ in range(30):
        if await target.evaluate("element => element === document.activeElement"):  # type: ignore[attr-defined]
            return
        await page.keyboard.press("Tab")
    raise AssertionError("Tab does not lead there")
