"""The picture in README.md, taken from the running program. ``PUPITRE_TAKE_PICTURE=1`` writes it anew."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests import ROOT
from tests.rigs.rest_client import person
from tests.rigs.stack import Stack

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.browser, pytest.mark.guest]

TAKEN = bool(os.environ.get("PUPITRE_TAKE_PICTURE"))
BRIGHT = """() => [...document.querySelectorAll("img[data-screen]:not([hidden])")].some((image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [64, 40];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 64, 40);
    return context.getImageData(0, 0, 64, 40).data.filter((part, at) => at % 4 < 3 && part > 60).length > 3000;
})"""
PICTURE = ROOT / "docs/desktops.png"


def test_the_first_page_shows_a_running_desktop(stack: Stack, browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(f"{stack.url}/signin")
    page.fill("input[name=name]", "teacher")
    page.fill("input[name=password]", stack.password("teacher"))
    page.keyboard.press("Enter")
    page.click("#start-tiny")
    page.wait_for_selector('[data-desktop][data-state="running"] img[data-screen]:not([hidden])', timeout=60_000)
    if TAKEN:
        page.click("#start-debian-desktop")
        page.wait_for_function(BRIGHT, timeout=240_000, polling=1000)
    target = PICTURE if TAKEN else tmp_path / PICTURE.name
    page.screenshot(path=target)
    assert target.stat().st_size > 10_000
    context.close()
    with person(stack.url, "teacher", stack.password("teacher")) as teacher:
        for desktop in teacher.http.get("/desktops").json()["items"]:
            ended = teacher.http.delete(f"/desktops/{desktop['id']}").json()
            assert teacher.outcome(ended["command"])["state"] == "succeeded"
