"""A student in a browser, with nothing mocked: sign in, start, see, type, be answered, stop."""

import io
import os
import signal
import time
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.rigs.rest_client import Serial, emulators, overlay, person
from tests.rigs.stack import Stack

pytestmark = pytest.mark.xdist_group("stack")

PIXELS = """() => {
  const canvas = document.querySelector("#screen canvas");
  if (!canvas || !canvas.width) return 0;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
  return seen.size;
}"""
"""How many colours the canvas shows; one is a blank screen."""

SIZE = """() => {
  const canvas = document.querySelector("#screen canvas");
  return canvas ? `${canvas.width}x${canvas.height}` : "";
}"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    yield page
    context.close()


def wait_for(page: Page, expression: str, *, seconds: float) -> None:
    """Playwright's own `wait_for_function` needs eval, which our pages forbid."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        page.wait_for_timeout(100)


def sign_in(stack: Stack, page: Page, name: str) -> None:
    page.goto(stack.url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(stack.password(name))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Start a computer")).to_be_visible()


def open_console(page: Page) -> str:
    """Follow Open once it is there; the desktop's id."""
    page.get_by_role("link", name="Open").click(timeout=60_000)
    expect(page.locator("#main")).to_have_attribute("data-state", "connected", timeout=30_000)
    desktop = page.locator("#main").get_attribute("data-desktop")
    assert desktop
    return desktop


SHIFTED = dict(zip('!@#$%^&*()_+{}|:"<>?~', "1234567890-=[]\\;',./`", strict=True))
"""On a US keyboard: which key makes this character together with Shift."""


def type_by_hand(page: Page, text: str) -> None:
    """As fingers do it, Shift held down; Playwright's own `type` sends characters that no key makes alone."""
    for character in text:
        key = {"\n": "Enter"}.get(character, SHIFTED.get(character, character.lower()))
        page.keyboard.press(f"Shift+{key}" if character in SHIFTED or character.isupper() else key, delay=20)


def test_a_student_works_in_a_real_desktop(stack: Stack, page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    with person(stack.url, "student", stack.password("student")):
        sign_in(stack, page, "student")
        page.locator("#start-tiny").click()
        expect(page.locator("ol.steps, a.screen").first).to_be_visible()
        desktop = open_console(page)

        with Serial(stack.home, desktop) as line:
            line.wait_for_shell()
            wait_for(page, f"({PIXELS})() > 1", seconds=30)
            page.locator("#screen canvas").click()
            type_by_hand(page, "echo typed-$((6*7)) > /dev/ttyS0\n")
            line.hear("typed-42")

        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Stop it").click()
        expect(page.get_by_role("heading", name="Start a computer")).to_be_visible()
        expect(page.locator(f"#desktop-{desktop}")).to_have_count(0, timeout=30_000)
    assert not overlay(stack.home, desktop).exists()
    assert not emulators(desktop)
    assert errors == []


def test_the_console_comes_back_by_itself(stack: Stack, page: Page) -> None:
    """The web process is killed under an open console; the page reconnects with a new ticket."""
    with person(stack.url, "student", stack.password("student")) as student:
        student.start()
        sign_in(stack, page, "student")
        open_console(page)
        killed = stack.pid("web")
        os.kill(killed, signal.SIGKILL)
        expect(page.locator("#main")).to_have_attribute("data-state", "reconnecting", timeout=10_000)
        expect(page.locator("#main")).to_have_attribute("data-state", "connected", timeout=60_000)
        wait_for(page, f"({PIXELS})() > 1", seconds=30)
        stack.wait_until("the web process is recorded", lambda: stack.pid("web") != killed)


@pytest.mark.slow
def test_the_debian_desktop_is_there(stack: Stack, page: Page) -> None:
    """A real graphical Debian, 1280x800, on noVNC's canvas."""
    built = stack.pupitre("image", "build", "debian-desktop", timeout=900)
    assert built.returncode == 0
    with person(stack.url, "student", stack.password("student")):
        sign_in(stack, page, "student")
        page.locator("#start-debian-desktop").click(timeout=30_000)
        open_console(page)
        wait_for(page, f"({SIZE})() === '1280x800'", seconds=240)
        wait_for(page, f"({PIXELS})() > 100", seconds=240)
        picture = Image.open(io.BytesIO(page.locator("#screen canvas").screenshot()))
        assert picture.width > 600
