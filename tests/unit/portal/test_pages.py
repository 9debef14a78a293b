"""Pages in Chromium: by keyboard alone, live without a reload, on a laptop and a phone, for everyone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import CopyState
from tests.rigs.portal_browser import a_browser, accessible, fits, opened, reach
from tests.rigs.portal_site import PASSWORD, Site, an_image, firmware_guest, now, open_site

pytestmark = [pytest.mark.anyio, pytest.mark.browser]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


async def test_keyboard_alone_starts_and_stops_desktop(site: Site, chromium: Browser) -> None:
    """From sign in to a running desktop and its stop by keyboard alone."""
    async with opened(site, chromium, None) as page:
        await page.goto("/")
        keys = page.keyboard
        await keys.type("student")
        await keys.press("Tab")
        await keys.type(PASSWORD)
        await keys.press("Enter")
        start = page.get_by_role("button", name="Start Tiny Linux")
        await expect(start).to_be_visible()
        await reach(page, start)
        await keys.press("Enter")

        command = await site.endpoint.next_command()
        card = page.locator("[data-desktop]")
        await expect(card).to_have_attribute("data-state", "requested")
        await expect(card.locator("[aria-current=step]")).to_contain_text("Asked for")
        await site.endpoint.desktop(command, DesktopState.PREPARING)
        await expect(card.locator("[aria-current=step]")).to_contain_text("Preparing its disk")
        await site.endpoint.desktop(command, DesktopState.BOOTING, since=now() - 7000)
        await expect(card.locator("[aria-current=step]")).to_contain_text("Starting up")
        await expect(card.locator(".took")).to_have_text("9 s", timeout=10_000)
        await expect(page.locator("#spoken")).to_contain_text("Starting up")
        await expect(card.locator(".done")).to_have_count(2)
        await site.endpoint.run(command)
        await expect(card).to_have_attribute("data-state", "running")
        await expect(card.locator("img[data-screen]")).to_be_visible()
        await expect(page.locator("#spoken")).to_contain_text("Running")

        stop = page.get_by_role("button", name="Stop Tiny Linux")
        await reach(page, stop)
        await keys.press("Space")
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("everything you did on it is lost")
        await expect(dialog.get_by_role("button", name="Keep it running")).to_be_focused()
        await keys.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(card).to_have_attribute("data-state", "running")
        await reach(page, stop)
        await keys.press("Enter")
        await keys.press("Tab")
        await keys.press("Enter")
        await expect(card).to_have_attribute("data-state", "stopping")
        ask = await site.endpoint.next_command()
        await site.endpoint.desktop(command, DesktopState.GONE)
        await site.endpoint.succeed(ask)
        await expect(card).to_have_count(0)


async def test_a_failed_start_says_why_and_what_to_do(site: Site, chromium: Browser) -> None:
    async with opened(site, chromium) as page:
        await page.click("#start-tiny")
        command = await site.endpoint.next_command()
        await site.endpoint.fail(command, "VM_BOOT_FAILURE", "The host has no room for another disk.")
        card = page.locator("[data-desktop]")
        await expect(card.get_by_role("alert")).to_contain_text("The host has no room for another disk.")
        await expect(card.get_by_role("alert")).to_contain_text("show this message to your teacher")
        await accessible(page)
        await card.get_by_role("button", name="Dismiss").click()
        await expect(card).to_have_count(0)


async def test_limits_and_refusals_are_said_on_the_page(site: Site, chromium: Browser) -> None:
    async with opened(site, chromium) as page, opened(site, chromium) as second:
        await second.route("**/live/**", lambda route: route.abort())  # a tab that was asleep
        await second.reload()
        await page.click("#start-tiny")
        await expect(page.locator(".limit")).to_contain_text("You have 1 of 1 desktop. Stop one to start another.")
        await expect(page.locator("#start-tiny")).to_be_disabled()
        await second.click("#start-tiny")
        await expect(second.locator("#notice")).to_contain_text("Stop one and start again.")


async def test_progress_of_images_and_the_link_to_the_cluster_are_live(site: Site, chromium: Browser) -> None:
    making = an_image("big", "Big", state=CopyState.FETCHING, progress=0.25, reason="Unpacking 3 of 9")
    async with opened(site, chromium) as page:
        await site.endpoint.images(making)
        bar = page.locator("#progress-big")
        await expect(bar).to_have_attribute("value", "25")
        await expect(page.locator("#image-big")).to_contain_text("Unpacking 3 of 9")
        await accessible(page)
        await site.endpoint.images(an_image("big", "Big"))
        await expect(page.locator("#start-big")).to_be_enabled()
        await site.endpoint.link(False, "The broker does not answer.", ago_ms=65_000)
        await expect(page.locator(".banner")).to_contain_text("unreachable since")
        await expect(page.locator(".banner")).to_contain_text("65 s")
        await accessible(page)
        await site.endpoint.link()
        await expect(page.locator(".banner")).to_have_count(0)


async def test_without_scripts(site: Site, chromium: Browser) -> None:
    context = await chromium.new_context(java_script_enabled=False, base_url=site.url)
    page = await context.new_page()
    await page.goto("/")
    await page.fill("#name", "student")
    await page.fill("#password", "wrong")
    await page.press("#password", "Enter")
    await expect(page.get_by_role("alert")).to_contain_text("The name or the password is wrong.")
    await page.fill("#password", PASSWORD)
    await page.press("#password", "Enter")
    await page.click("#start-tiny")
    await expect(page.locator("[data-desktop]")).to_have_attribute("data-state", "requested")
    await site.endpoint.run(await site.endpoint.next_command())
    await page.reload()
    await page.get_by_role("button", name="Stop Tiny Linux").click()
    await page.get_by_role("button", name="Stop it").click()
    await expect(page.locator("[data-desktop]")).to_have_attribute("data-state", "stopping")
    await context.close()


async def test_console_leaves_by_keyboard_and_reconnects(site: Site, chromium: Browser) -> None:
    """The console connects leaves by keyboard and comes back by itself."""
    desktop = await site.running("student")
    async with opened(site, chromium) as page:
        async with firmware_guest(site, desktop.id):
            await page.goto(f"/desktops/{desktop.id}")
            main = page.locator("main")
            await expect(main).to_have_attribute("data-state", "connected", timeout=20_000)
            await expect(page.locator("#link-text")).to_have_text("Connected")
            await expect(page.locator("#screen canvas")).to_be_focused()
            await page.keyboard.press("Tab")
            await expect(page.locator("#screen canvas")).to_be_focused()
            await page.keyboard.press("Control+Alt+Shift")
            await expect(page.locator("#fullscreen")).to_be_focused()
            await page.keyboard.press("ArrowRight")
            await expect(page.locator("#cad")).to_be_focused()
            await page.keyboard.press("Escape")
            await expect(page.locator("#screen canvas")).to_be_focused()
            await page.click("#clipboard")
            await page.fill("#clipboard-text", "print('Hello')")
            await page.click("#clipboard-type")
            await page.click("#clipboard-send")
            await page.click("#clipboard")
            await page.click("#scaling")
            await expect(page.locator("#scaling")).to_have_attribute("aria-pressed", "false")
            await accessible(page)
            painted = """() => {
                const canvas = document.querySelector("#screen canvas");
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return data.some((value, at) => at % 4 < 3 && value > 128);
            }"""
            await page.wait_for_function(painted)
        await expect(main).to_have_attribute("data-state", "reconnecting")
        await expect(page.locator("#curtain-text")).to_have_text("Connecting again…")
        async with firmware_guest(site, desktop.id):
            await page.get_by_role("button", name="Connect now").click()
            await expect(main).to_have_attribute("data-state", "connected", timeout=20_000)
            assert await page.evaluate("pupitreConsole.attempts") >= 2
            await page.click("#stop")
            await page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
            await page.wait_for_url(site.url + "/")
            await expect(page.locator("[data-desktop]")).to_have_attribute("data-state", "stopping")


async def test_console_of_gone_desktop_says_so(site: Site, chromium: Browser) -> None:
    """The console of a desktop that is gone says so and tries nothing."""
    desktop = await site.running("student")
    async with opened(site, chromium) as page, firmware_guest(site, desktop.id):
        await page.goto(f"/desktops/{desktop.id}")
        main = page.locator("main")
        await expect(main).to_have_attribute("data-state", "connected", timeout=20_000)
        async with site.as_user("student") as program:
            await program.delete(f"/api/v1/desktops/{desktop.id}")
        await expect(main).to_have_attribute("data-state", "ended")
        await expect(page.locator("#curtain-text")).to_have_text("The desktop is stopping.")
        await accessible(page)
        attempts = await page.evaluate("pupitreConsole.attempts")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.evaluate("window.dispatchEvent(new Event('online'))")
        await page.get_by_role("link", name="My desktops").last.click()
        await page.wait_for_url(site.url + "/")
        assert attempts == 1
        assert not any(url.endswith("/console") for url in asked)


@pytest.mark.parametrize(("dark", "phone"), [(False, False), (True, True)], ids=["laptop", "phone"])
async def test_every_page_is_accessible_and_fits(
    site: Site, chromium: Browser, dark: bool, phone: bool, record_property: Callable[[str, object], None]
) -> None:
    await site.endpoint.images(
        an_image("debian-desktop", "Debian desktop", description="X, editor, IDLE", memory_mib=1024, vcpus=2)
    )
    desktop = await site.running("admin")
    folder = site.settings.home / "pictures"
    folder.mkdir()
    record_property("pictures", str(folder))
    async with opened(site, chromium, None, dark=dark, phone=phone) as page:
        await page.goto("/signin")
        await accessible(page)
        await fits(page)
    async with opened(site, chromium, "admin", dark=dark, phone=phone) as page, firmware_guest(site, desktop.id):
        await expect(page.locator("img[data-screen]")).to_be_visible()
        for path in ("/", "/admin/hosts", "/admin/audit", "/account", f"/desktops/{desktop.id}/stop", "/nothing"):
            await page.goto(path)
            await accessible(page)
            await fits(page)
            await page.screenshot(path=folder / f"{path.strip('/').split('/')[0] or 'home'}.png")
        await page.goto(f"/desktops/{desktop.id}")
        await expect(page.locator("main")).to_have_attribute("data-state", "connected", timeout=20_000)
        await fits(page)
        await accessible(page)
        if phone:
            await page.click("#typing")
            await expect(page.locator("#soft-keys")).to_be_focused()
            await page.keyboard.type("ls")
            await expect(page.locator("#soft-keys")).to_have_value("_")
        await page.click("#help")
        await accessible(page)
        await fits(page)


async def test_a_tab_that_lost_the_server_hears_again_by_itself(tmp_path: Path, chromium: Browser) -> None:
    async with open_site(tmp_path) as site:
        port = site.settings.portal_port
        async with opened(site, chromium) as page:
            await expect(page.locator("#start-tiny")).to_be_visible()
            await site.stop_web()
            await site.endpoint.images(an_image("new", "New one"))
            await site.start_web()
            assert site.settings.portal_port == port
            await expect(page.locator("#start-new")).to_be_visible(timeout=15_000)
            await asyncio.wait_for(site.running("student"), 20)
            await expect(page.locator("[data-desktop]")).to_have_attribute("data-state", "running", timeout=15_000)
