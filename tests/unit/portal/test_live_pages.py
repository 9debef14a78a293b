"""What pages say while things go wrong: a host that leaves, rows that nobody confirms, answers that come late."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from pupitre.domain.command import BootDesktop, CommandEvent, Fault
from pupitre.domain.desktop import DesktopState
from pupitre.domain.status import Position
from tests.rigs.portal_browser import a_browser, accessible, fits, opened
from tests.rigs.portal_site import CLUSTER, Site, an_image, firmware_guest, now, open_site

UNDER_90_S = re.compile(r"^(1:[0-2]|0:[0-5])\d$")
pytestmark = [pytest.mark.anyio, pytest.mark.browser]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


async def test_countdown_runs_before_host_shutdown(site: Site, chromium: Browser) -> None:
    """A countdown runs before a host is shut down and goes when it stays."""
    await site.endpoint.host(port=site.console_port, label="Room 12")
    desktop = await site.running("student")
    leaves = replace(desktop, until=now() + 95_000)
    async with opened(site, chromium, phone=True) as board, opened(site, chromium) as screen:
        async with firmware_guest(site, desktop.id):
            await screen.goto(f"/desktops/{desktop.id}")
            main = screen.locator("main")
            await expect(main).to_have_attribute("data-state", "connected", timeout=20_000)
            await site.endpoint.tell(leaves)
            for page in (board, screen):
                notice = page.locator(".leaving")
                await expect(notice).to_contain_text("Room 12 is being shut down for maintenance")
                await expect(notice).to_contain_text("Save your work.")
                await expect(notice.get_by_role("timer")).to_have_text(UNDER_90_S, timeout=30_000)
                await expect(page.locator("#spoken")).to_contain_text("seconds. Save your work.")
                await accessible(page)
                await fits(page)
            await site.endpoint.tell(desktop)
            await expect(board.locator(".leaving")).to_have_count(0)
            await expect(screen.locator(".leaving")).to_be_hidden()
            await expect(screen.locator("#spoken")).to_contain_text("The desktop stays")
            await site.endpoint.tell(leaves)
            await expect(screen.locator(".leaving")).to_be_visible()
            await site.endpoint.tell(replace(leaves, state=DesktopState.STOPPING))
            await expect(main).to_have_attribute("data-state", "ended")
        await expect(screen.locator("#curtain-hint")).to_have_text("Room 12 is shut down for maintenance.")
        await expect(screen.locator("#curtain-next")).to_contain_text("you can start another")
        await expect(screen.locator(".leaving")).to_be_hidden()


async def test_a_lost_desktop_says_for_how_long_and_that_it_comes_back(site: Site, chromium: Browser) -> None:
    desktop = await site.running("student")
    lost = replace(
        desktop, state=DesktopState.LOST, since=now() - 300_000, reason="host-1 has not been heard of for 16 s."
    )
    async with opened(site, chromium) as board:
        await site.endpoint.tell(lost)
        card = board.locator("[data-desktop]")
        await expect(card).to_contain_text("Out of reach for 5 min")
        await expect(card).to_contain_text("host-1 has not been heard of for 16 s.")
        await expect(card).to_contain_text("It comes back by itself when its host does.")
        await accessible(board)
        await board.goto(f"/desktops/{desktop.id}")
        await expect(board.locator("#curtain-next")).to_contain_text("It comes back by itself when its host does")
        await expect(board.locator("main")).to_have_attribute("data-state", "waiting")
        await site.endpoint.tell(replace(desktop, since=now()))
        await expect(board.locator("main")).not_to_have_attribute("data-state", "waiting")


async def test_rows_that_nobody_confirms_are_marked_with_their_age(tmp_path: Path, chromium: Browser) -> None:
    async with open_site(tmp_path, status_update_interval=4) as site:
        await site.running("student")
        await site.endpoint.status.heard(CLUSTER, now(), Position())
        async with opened(site, chromium) as page:
            mark = page.locator("[data-desktop] .as-of")
            await expect(mark).to_be_hidden()
            await expect(mark).to_be_visible(timeout=20_000)  # nothing has happened but time
            await expect(mark).to_contain_text(" s ago")
            await expect(page.locator("#banner")).to_contain_text("the cluster has confirmed nothing since")
            await accessible(page)
            await site.endpoint.status.heard(CLUSTER, now(), Position())
            await expect(mark).to_be_hidden(timeout=10_000)


@pytest.mark.parametrize(
    ("setting", "words"),
    [("queue", "What you ask for now waits up to 10 s for the cluster"), ("refuse", "What you ask for now is refused")],
)
async def test_the_banner_says_since_when_why_and_what_still_works(
    tmp_path: Path, chromium: Browser, setting: str, words: str
) -> None:
    async with open_site(tmp_path, when_unreachable=setting) as site, opened(site, chromium) as page:
        await site.endpoint.link(False, "The broker does not answer.", ago_ms=65_000)
        banner = page.locator(".banner").first
        await expect(banner).to_contain_text("The cluster has been unreachable since")
        await expect(banner).to_contain_text("The broker does not answer.")
        await expect(banner).to_contain_text("Desktops that run go on running")
        await expect(banner).to_contain_text(words)
        await page.click("#start-tiny")
        if setting == "refuse":
            await expect(page.locator("#notice")).to_contain_text("Nothing has been asked of it.")
            await expect(page.locator("#notice [data-wait]")).to_contain_text("You can press again")
        else:
            await expect(page.locator("[data-desktop]")).to_have_attribute("data-state", "requested")
        await accessible(page)


async def test_late_outcomes_and_time_outs_are_said_in_words(site: Site, chromium: Browser) -> None:
    async with opened(site, chromium) as page:
        await page.click("#start-tiny")
        command = await site.endpoint.next_command()
        fault = Fault("TIMED_OUT", "There was no outcome within 120 seconds.")
        await site.endpoint.commands.advance(command.id, CommandEvent.TIME_OUT, now=now(), fault=fault)
        alert = page.locator("[data-desktop]").get_by_role("alert")
        await expect(alert).to_contain_text("It took longer than 2 min and was cancelled.")
        await site.endpoint.succeed(command)
        await expect(alert).to_contain_text("A late answer came: the desktop had started after all.")


async def test_pressed_too_early_the_board_counts_the_wait(tmp_path: Path, chromium: Browser) -> None:
    async with open_site(tmp_path, min_command_interval=5) as site, opened(site, chromium, "teacher") as page:
        await page.click("#start-tiny")
        await expect(page.locator("[data-desktop]")).to_have_count(1)
        await page.click("#start-tiny")
        await expect(page.locator("#notice")).to_contain_text("That was too quick: wait")
        await expect(page.locator("#notice [data-wait]")).to_have_text("You can press again now.", timeout=15_000)
        await page.click("#start-tiny")
        await expect(page.locator("[data-desktop]")).to_have_count(2)
        await expect(page.locator("#notice [data-wait]")).to_have_count(0)


async def test_teacher_starts_desktop_to_edit_on_edition_host(site: Site, chromium: Browser) -> None:
    """Teachers start a desktop to edit where a host is for that."""
    async with opened(site, chromium, "teacher") as page, opened(site, chromium, "student") as student:
        edit = page.get_by_role("button", name="Start to edit Tiny Linux")
        await expect(page.locator("#start-tiny")).to_be_visible()
        await expect(edit).to_have_count(0)
        await site.endpoint.host("studio", edition=True)
        await site.endpoint.images(an_image("tiny", "Tiny Linux"), host="studio")
        await expect(edit).to_be_visible()
        await student.reload()
        await expect(student.locator("#start-tiny")).to_be_visible()
        await expect(student.get_by_role("button", name="Start to edit")).to_have_count(0)
        await edit.click()
        command = await site.endpoint.next_command()
        assert command.order == BootDesktop(command.subject, "tiny", edition=True)
    async with site.as_user("student") as program:
        answer = await program.post("/api/v1/desktops", json={"image": "tiny", "edition": True})
        assert answer.status_code == 403
    async with site.as_user("teacher") as program:
        await site.endpoint.host("studio", edition=False)
        answer = await program.post("/api/v1/desktops", json={"image": "tiny", "edition": True})
        assert answer.status_code == 409
        assert "No edition host has Tiny Linux ready." in answer.json()["detail"]


async def test_a_native_viewer_gets_its_file_where_the_host_lets_it_in(site: Site, chromium: Browser) -> None:
    desktop = await site.running("student")
    async with opened(site, chromium) as page:
        await expect(page.get_by_role("button", name="Open in a viewer")).to_have_count(0)
        await site.endpoint.host(port=site.console_port, viewer_port=5901)
        await page.reload()
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Open in a viewer").click()
        file = await download.value
        assert file.suggested_filename == f"{desktop.id}.vv"
        assert "port=5901" in (await file.path()).read_text().splitlines()
        await page.goto(f"/desktops/{desktop.id}")
        async with page.expect_download() as download:
            await page.click("#viewer")
        assert (await download.value).suggested_filename == f"{desktop.id}.vv"
