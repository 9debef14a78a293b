"""The picture in README.md, taken from the running program. ``PUPITRE_TAKE_PICTURE=1`` writes it anew."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.stack import Stack
from tests.whole import person

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.browser, pytest.mark.guest]

PICTURE = Path(__file__).parents[1] / "docs/desktops.png"


def test_the_first_page_shows_a_running_desktop(stack: Stack, browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(f"{stack.url}/signin")
    page.fill("input[name=name]", "teacher")
    page.fill("input[name=password]", stack.password("teacher"))
    page.keyboard.press("Enter")
    page.click("#start-tiny")
    page.wait_for_selector('[data-desktop][data-state="running"] img[data-screen]:not([hidden])', timeout=60_000)
    target = PICTURE if os.environ.get("PUPITRE_TAKE_PICTURE") else tmp_path / PICTURE.name
    page.screenshot(path=target)
    assert target.stat().st_size > 10_000
    context.close()
    with person(stack.url, "teacher", stack.password("teacher")) as teacher:
        for desktop in teacher.http.get("/desktops").json()["items"]:
            ended = teacher.http.delete(f"/desktops/{desktop['id']}").json()
            assert teacher.outcome(ended["command"])["state"] == "succeeded"
