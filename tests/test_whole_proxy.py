"""Portal and gateway as processes of their own behind Caddy, with the configuration that we ship."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from pupitre.up.ports import free_port
from tests.stack import Stack
from tests.test_deploy_caddy import CADDY, CADDYFILE, certify
from tests.whole import Serial, person

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


@pytest.fixture
def proxied(stack: Stack, tmp_path: Path) -> Iterator[str]:
    """The origin of the proxy: this instance's databases and hosts, other web processes."""
    certify(tmp_path)
    site, portal, gateway = free_port(), free_port(), free_port()
    origin = f"https://localhost:{site}"
    web = {
        **stack.environment,
        "PUPITRE_BEHIND_PROXY": "true",
        "PUPITRE_PUBLIC_ORIGIN": origin,
        "PUPITRE_PORTAL_PORT": str(portal),
        "PUPITRE_GATEWAY_PORT": str(gateway),
    }
    caddy = {
        **os.environ,
        "XDG_DATA_HOME": str(tmp_path / "caddy"),
        "XDG_CONFIG_HOME": str(tmp_path / "caddy"),
        "PUPITRE_SITE": origin,
        "PUPITRE_HTTP_PORT": str(free_port()),
        "PUPITRE_TLS": f"{tmp_path / 'site.crt'} {tmp_path / 'site.key'}",
        "PUPITRE_PORTAL": f"127.0.0.1:{portal}",
        "PUPITRE_GATEWAY": f"127.0.0.1:{gateway}",
    }
    with ExitStack() as processes:
        for name in ("portal", "gateway"):
            command = [sys.executable, "-m", "pupitre", name]
            processes.enter_context(running(command, web, tmp_path / f"{name}.log"))
        serve = [str(CADDY), "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"]
        processes.enter_context(running(serve, caddy, tmp_path / "caddy.log"))
        trust = ssl.create_default_context(cafile=str(tmp_path / "site.crt"))

        def answers() -> bool:
            try:
                pages = httpx2.get(f"{origin}/readyz", verify=trust).status_code
                consoles = httpx2.get(f"{origin}/gateway/readyz", verify=trust).status_code
            except httpx2.HTTPError:
                return False
            return (pages, consoles) == (200, 200)

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
        (cookie,) = context.cookies()
        assert cookie["secure"]
        assert cookie["httpOnly"]
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
