"""Administrators' pages in Chromium: hosts in and out of service, halting, the audit log."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from pupitre.domain.command import BootUpHost, CommandEvent, ConfigureHost, Fault, Halt, RegisterHost, RetireHost
from pupitre.domain.host import HostState
from tests.rigs.portal_browser import a_browser, accessible, fits, opened, without_scripts
from tests.rigs.portal_site import Site, now, open_site

pytestmark = [pytest.mark.anyio, pytest.mark.browser]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


async def test_a_host_is_registered_and_nothing_typed_is_lost(site: Site, chromium: Browser) -> None:
    async with opened(site, chromium, "admin") as page:
        await page.click("text=Hosts")
        await expect(page.locator("#host-host-1")).to_contain_text("Ready")
        await page.fill("#field-name", "Lab 2")
        await page.fill("#field-address", "10.0.0.12")
        await page.fill("#field-port", "70000")
        await page.fill("#field-mac", "52:54:00")
        await page.check("#field-edition")
        await page.get_by_role("button", name="Register").click()
        for name, sentence in {"name": "small letters", "port": "1 to 65535", "mac": "six pairs"}.items():
            await expect(page.locator(f"#field-{name}")).to_have_attribute("aria-invalid", "true")
            await expect(page.locator(f"#field-{name}-error")).to_contain_text(sentence)
        await expect(page.locator("#field-name")).to_be_focused()
        await expect(page.locator("#field-address")).to_have_value("10.0.0.12")
        await expect(page.locator("#field-edition")).to_be_checked()
        await accessible(page)
        await page.fill("#field-name", "lab-2")
        await page.fill("#field-port", "7000")
        await page.fill("#field-mac", "52:54:00:12:34:5F")
        await page.get_by_role("button", name="Register").click()
        command = await site.endpoint.next_command()
        assert command.order == RegisterHost("lab-2", "10.0.0.12", 7000, True, "52:54:00:12:34:5f")
        told = page.locator(f"#command-{command.id}")
        await expect(told).to_contain_text("Register lab-2 (10.0.0.12:7000) as an edition host")
        await expect(told).to_contain_text("The cluster works on it.")
        await site.endpoint.fail(command, "VM_SERVER_REGISTRATION_ERROR", "10.0.0.12:7000 does not answer.")
        await expect(told).to_contain_text("10.0.0.12:7000 does not answer.")
        await site.endpoint.host("lab-2", facts=None, label="Room 12", edition=True)
        seen = page.locator("#host-lab-2")
        await expect(seen).to_contain_text("Nothing reported yet")
        await expect(seen).to_contain_text("Room 12")
        await expect(seen).to_contain_text("edition")
        await accessible(page)
    async with opened(site, chromium, "student") as page:
        await expect(page.get_by_role("link", name="Hosts")).to_have_count(0)


async def test_a_host_is_configured_shut_down_and_booted_up_again(site: Site, chromium: Browser) -> None:
    await site.running("student")
    await site.running("other")
    async with opened(site, chromium, "admin") as page:
        await page.goto("/admin/hosts")
        await expect(page.locator("#host-host-1")).to_contain_text("2 desktops")
        await page.get_by_role("link", name="host-1").click()
        await page.fill("#field-label", "Room 12")
        await page.fill("#field-mac", "52:54:00:12:34:56")
        await page.get_by_role("button", name="Save").click()
        command = await site.endpoint.next_command()
        assert command.order == ConfigureHost("host-1", label="Room 12", mac="52:54:00:12:34:56")
        await expect(page.locator(f"#command-{command.id}")).to_contain_text("label “Room 12”, MAC 52:54:00:12:34:56")
        mac = "52:54:00:12:34:56"
        await site.endpoint.host(port=site.console_port, label="Room 12", mac=mac)
        await site.endpoint.succeed(command)
        await expect(page.locator(f"#command-{command.id}")).to_contain_text("Done after")
        await expect(page.locator("#host")).to_contain_text(mac)

        await page.get_by_role("link", name="Shut down").click()
        await expect(page.locator("h1")).to_have_text("Shut down Room 12?")
        await expect(page.locator(".lead")).to_contain_text("2 desktops run here.")
        await expect(page.locator("#orderly")).to_be_checked()
        await expect(page.locator("#orderly-hint")).to_contain_text("after 60 s their desktops are shut down")
        await accessible(page)
        await page.get_by_role("button", name="Shut down Room 12").click()
        command = await site.endpoint.next_command()
        assert command.order == RetireHost("host-1", unregister=False, at_once=False)
        await site.endpoint.host(port=site.console_port, label="Room 12", mac=mac, state=HostState.DRAINING)
        await expect(page.locator("#host")).to_contain_text("Being shut down")
        await site.endpoint.host(port=site.console_port, label="Room 12", mac=mac, state=HostState.SHUT_DOWN)
        await page.get_by_role("button", name="Boot up").click()
        command = await site.endpoint.next_command()
        assert command.order == BootUpHost("host-1")
        await site.endpoint.commands.advance(
            command.id, CommandEvent.TIME_OUT, now=now(), fault=Fault("TIMED_OUT", "There was no outcome.")
        )
        told = page.locator(f"#command-{command.id}")
        await expect(told).to_contain_text("It took longer than 10 min and was cancelled.")
        await site.endpoint.succeed(command)
        await expect(told).to_contain_text("A late answer came: it was done after all.")


async def test_hosts_without_scripts(site: Site, chromium: Browser) -> None:
    async with without_scripts(site, chromium, "admin") as page:
        await page.goto("/admin/hosts")
        await page.fill("#field-name", "lab-2")
        await page.fill("#field-address", "10.0.0.12")
        await page.fill("#field-port", "many")
        await page.get_by_role("button", name="Register").click()
        await expect(page.locator("#field-port-error")).to_contain_text("1 to 65535")
        await expect(page.locator("#field-port")).to_have_value("many")
        await page.fill("#field-port", "7000")
        await page.get_by_role("button", name="Register").click()
        command = await site.endpoint.next_command()
        assert command.order == RegisterHost("lab-2", "10.0.0.12", 7000)

        await page.goto("/admin/hosts/host-1")
        await page.get_by_role("link", name="Unregister").click()
        await expect(page.locator(".lead")).to_contain_text("No desktop runs here")
        await page.check("#at-once")
        await page.get_by_role("button", name="Unregister host-1").click()
        command = await site.endpoint.next_command()
        assert command.order == RetireHost("host-1", unregister=True, at_once=True)
        await expect(page.locator(f"#command-{command.id}")).to_contain_text("Unregister host-1 at once")

        await page.get_by_role("link", name="Halt the cluster").click()
        await page.check("#hosts-too")
        await page.fill("#cluster", "mian")
        await page.get_by_role("button", name="Halt").click()
        await expect(page.locator("#cluster-error")).to_have_text("This is not its name. Type main to halt it.")
        await expect(page.locator("#hosts-too")).to_be_checked()
        await page.fill("#cluster", "main")
        await page.get_by_role("button", name="Halt").click()
        command = await site.endpoint.next_command()
        assert command.order == Halt(hosts=True)
        await expect(page.locator(f"#command-{command.id}")).to_contain_text("Halt the cluster and its hosts")


async def test_a_host_that_is_gone_leaves_its_page_with_words(site: Site, chromium: Browser) -> None:
    async with opened(site, chromium, "admin") as page:
        await page.goto("/admin/hosts/host-1")
        await expect(page.locator("#host")).to_contain_text("Ready")
        await site.endpoint.host_gone()
        await expect(page.locator("#host")).to_contain_text("host-1 is not registered any more.")
        await accessible(page)


async def test_form_sent_too_early_keeps_its_values(tmp_path: Path, chromium: Browser) -> None:
    """Pressed too early the page says the wait and keeps the form."""
    async with open_site(tmp_path, min_command_interval=4) as site, opened(site, chromium, "admin") as page:
        await page.goto("/admin/hosts/host-1")
        for label in ("One", "Two"):
            await page.fill("#field-label", label)
            await page.get_by_role("button", name="Save").click()
        await expect(page.locator("#refusal")).to_contain_text("That was too quick: wait")
        await expect(page.locator("[data-wait]")).to_contain_text("You can press again in")
        await expect(page.locator("#field-label")).to_have_value("Two")
        await accessible(page)
        await expect(page.locator("[data-wait]")).to_have_text("You can press again now.", timeout=10_000)
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator("#refusal")).to_have_count(0)
        orders = [command.order for command in await site.endpoint.commands.unfinished()]
        assert orders == [ConfigureHost("host-1", label="One"), ConfigureHost("host-1", label="Two")]


async def test_the_audit_log_is_searched_by_a_form_alone(site: Site, chromium: Browser) -> None:
    desktop = await site.running("student")
    async with without_scripts(site, chromium, "admin") as page:
        await page.goto("/admin/audit")
        entries = page.locator("[data-entry]")
        await expect(entries.first).to_contain_text("Sign in")
        await page.select_option("#action", "boot_desktop")
        await page.fill("#user", "student")
        await page.get_by_role("button", name="Search").click()
        await expect(entries).to_have_count(2)
        await expect(entries.first).to_contain_text("VM_CONNECTION_DATA")
        await expect(entries.last).to_contain_text("asked for")
        await expect(entries.last).to_contain_text(desktop.id)
        await page.get_by_role("link", name="its outcome").click()
        await expect(entries).to_have_count(2)
        await page.get_by_role("link", name="Show all").click()
        await page.fill("#since", "2037-01-01T00:00")
        await page.get_by_role("button", name="Search").click()
        await expect(entries).to_have_count(0)
        await expect(page.locator("main")).to_contain_text("Nothing like that is in the log.")
        await page.goto("/admin/audit?since=yesterday")
        await expect(page.locator("#since-error")).to_contain_text("2026-09-01T08:30")
    async with opened(site, chromium, "admin", phone=True) as page:
        await page.goto("/admin/audit?before=00000000-0000-7000-8000-000000000000")
        await expect(page.get_by_role("link", name="Newest")).to_be_visible()
        await accessible(page)
        await page.goto("/admin/audit")
        await expect(page.locator("#zone")).not_to_have_value("")
        await accessible(page)
        await fits(page)


async def test_the_audit_log_has_pages(site: Site) -> None:
    async with site.in_browser("admin") as admin:
        for _ in range(51):
            await admin.post("/admin/halt", data={"cluster": "main"})
        first = (await admin.get("/admin/audit?action=halt")).text
        assert first.count("data-entry=") == 50
        older = first.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
        second = (await admin.get(older)).text
        assert second.count("data-entry=") == 1
        assert 'rel="next"' not in second
        assert "Newest" in second


@pytest.mark.parametrize(("dark", "phone"), [(False, False), (True, True)], ids=["laptop", "phone"])
async def test_every_page_is_accessible_and_fits(site: Site, chromium: Browser, dark: bool, phone: bool) -> None:
    await site.running("student")
    await site.endpoint.host("host-2", label="Room 12, left", state=HostState.SHUT_DOWN)
    await site.endpoint.host("host-3", state=HostState.TIMED_OUT, reason="No word for 16 s.", edition=True)
    async with opened(site, chromium, "admin", dark=dark, phone=phone) as page:
        one = "/admin/hosts/host-1"
        for path in (one, "/admin/hosts/host-2", f"{one}/shut-down", "/admin/hosts/host-3/unregister", "/admin/halt"):
            await page.goto(path)
            await accessible(page)
            await fits(page)
