"""Portal and gateway as processes of their own behind Caddy and nginx, with the configurations that we ship."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from pupitre.portal.identity.sessions import COOKIE
from pupitre.up.processes.ports import free_port
from tests.rigs.proxies import KINDS, SOURCE, reverse_proxy
from tests.rigs.rest_client import Serial, person
from tests.rigs.stack import Stack

pytestmark = pytest.mark.xdist_group("stack")


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(20) in {0, 130, -15}, log.read_text()


@pytest.fixture(params=KINDS)
def proxied(request: pytest.FixtureRequest, stack: Stack, tmp_path: Path) -> Iterator[str]:
    """The origin of the proxy: this instance's databases and hosts, other web processes."""
    site, portal, gateway = free_port(), free_port(), free_port()
    origin = f"https://localhost:{site}"
    web = {
        **stack.environment,
        "PUPITRE_BEHIND_PROXY": "true",
        "PUPITRE_TRUSTED_PROXIES": SOURCE,
        "PUPITRE_PUBLIC_ORIGIN": origin,
        "PUPITRE_PORTAL_PORT": str(portal),
        "PUPITRE_GATEWAY_PORT": str(gateway),
    }
    with ExitStack() as processes:
        for name in ("portal", "gateway"):
            command = [sys.executable, "-m", "pupitre", name]
            processes.enter_context(running(command, web, tmp_path / f"{name}.log"))
        trust = processes.enter_context(
            reverse_proxy(request.param, tmp_path / "proxy", port=site, portal=portal, gateway=gateway)
        )

        def answers() -> bool:
            try:
                pages = httpx2.get(f"{origin}/signin", verify=trust).status_code
                consoles = httpx2.get(f"{origin}/gateway/v1/screenshot/none", verify=trust).status_code
            except httpx2.HTTPError:
                return False
            return (pages, consoles) == (200, 403)

        stack.wait_until("portal and gateway answer through the proxy", answers)
        yield origin


def test_a_desktop_through_the_proxy(stack: Stack, proxied: str, browser: Browser) -> None:
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    with person(stack.url, "student", stack.password("student")):
        page.goto(proxied)
        page.get_by_label("Name").fill("student")
        page.get_by_label("Password").fill(stack.password("student"))
        page.get_by_role("button", name="Sign in").click()
        cookies = context.cookies()
        assert COOKIE in {cookie["name"] for cookie in cookies}
        assert all(cookie["secure"] and cookie["httpOnly"] for cookie in cookies)
        page.locator("#start-tiny").click()
        page.get_by_role("link", name="Open").click(timeout=60_000)
        expect(page.locator("#main")).to_have_attribute("data-state", "connected", timeout=30_000)
        desktop = page.locator("#main").get_attribute("data-desktop")
        assert desktop
        with Serial(stack.home, desktop) as line:
            line.wait_for_shell()
            page.locator("#screen canvas").click()
            page.keyboard.press("Enter")
        context.close()
