"""Behind Caddy and nginx as we ship them: HTTP/2, gzip, silence of 15 s, and whose address counts.

Portal and gateway are real; nothing happens in them but what a test does, so that what is silent is truly silent.
"""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import websockets

from pupitre.portal.identity.sessions import COOKIE
from pupitre.store.accounts import SessionKind
from pupitre.up.processes.ports import free_port
from tests.rigs.portal_site import PASSWORD, Site, firmware_guest, open_site
from tests.rigs.proxies import KINDS, READ_LIMIT, SOURCE, reverse_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

BROWSER = "127.0.0.66"
"""Where the browser sits."""
PROMPT = 3.0
"""Seconds within which a change is told; a proxy that gathers events would wait for the next sign of life at least."""


@dataclass
class Proxied:
    site: Site
    origin: str
    certificate: Path
    trust: ssl.SSLContext

    def client(self) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(local_address=BROWSER, verify=self.trust)
        return httpx2.AsyncClient(base_url=self.origin, transport=transport, headers={"Origin": self.origin})

    def curl(self, path: str, *options: str) -> list[str]:
        """A command for HTTP/2 with gzip, which browsers speak and our Python clients do not."""
        accepted = ("--http2", "--compressed", "-H", "Accept-Encoding: gzip", "--cacert", str(self.certificate))
        return ["curl", "-sS", "-N", *accepted, *options, f"{self.origin}{path}"]


@pytest.fixture(params=KINDS)
async def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Proxied]:
    port = free_port()
    origin = f"https://localhost:{port}"
    options = {"behind_proxy": True, "trusted_proxies": [SOURCE], "public_origin": origin.upper() + "/"}
    async with open_site(tmp_path / "home", **options) as site:
        web = site.settings.portal_port
        with reverse_proxy(request.param, tmp_path / "proxy", port=port, portal=web, gateway=web) as trust:
            yield Proxied(site, origin, tmp_path / "proxy/site.crt", trust)


@asynccontextmanager
async def stream(proxied: Proxied, path: str, cookie: str) -> AsyncIterator[asyncio.StreamReader]:
    command = proxied.curl(path, "-H", f"Cookie: {COOKIE}={cookie}")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=1 << 22)
    assert process.stdout
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


async def until(reader: asyncio.StreamReader, text: bytes) -> None:
    while text not in (line := await reader.readline()):
        assert line, f"the stream ended before {text!r}"


async def lives_through_silence(reader: asyncio.StreamReader) -> None:
    """Two signs of life, which together take longer than the proxy waits."""
    began = time.monotonic()
    for _ in range(2):
        async with asyncio.timeout(READ_LIMIT):
            await until(reader, b": ping")
    assert time.monotonic() - began > READ_LIMIT


async def tell(site: Site, label: str, readers: list[asyncio.StreamReader]) -> None:
    """Something happens, and is at once in every stream."""
    await site.endpoint.host(port=site.console_port, label=label)
    async with asyncio.timeout(PROMPT):
        await asyncio.gather(*(until(reader, label.encode()) for reader in readers))


async def test_pages_and_sign_in_over_http2_with_gzip(proxied: Proxied) -> None:
    """The cookie is Secure, the audit log has the browser's address and not what the browser made up."""
    page = await asyncio.create_subprocess_exec(
        *proxied.curl("/signin", "-o", os.devnull, "-D", "-", "-w", "%{http_version}"), stdout=asyncio.subprocess.PIPE
    )
    said = (await page.communicate())[0].decode().lower()
    assert said.endswith("\n2"), said
    assert "content-encoding: gzip" in said
    assert said.count("x-frame-options: deny") == 1
    async with proxied.client() as browser:
        forged = [("X-Forwarded-For", "10.9.9.9"), ("Forwarded", "for=10.9.9.9"), ("X-Real-IP", "10.9.9.9")]
        form = {"name": "admin", "password": PASSWORD, "next": "/account"}
        entered = await browser.post("/signin", data=form, headers=forged)
        assert entered.status_code == 303
        assert entered.headers["location"] == "/account"
        assert "; Secure" in entered.headers["set-cookie"]
        assert (await browser.get("/account")).status_code == 200
        newest = (await browser.get("/api/v1/audit")).json()["items"][0]
        assert newest["action"] == "sign_in"
        assert newest["origin"] == BROWSER
        for prefix in ("", "/gateway"):
            for name in ("healthz", "readyz", "metrics"):
                assert (await browser.get(f"{prefix}/{name}")).status_code == 404
    async with proxied.client() as elsewhere:
        refused = await elsewhere.post(
            "/signin", data={"name": "admin", "password": PASSWORD}, headers={"Origin": "https://evil.example"}
        )
        assert refused.status_code == 403


async def test_events_and_console_outlive_a_silence_of_15_s(proxied: Proxied) -> None:
    site = proxied.site
    await site.endpoint.host(port=site.console_port)
    desktop = await site.running("student")
    cookie = await site.session("admin", SessionKind.COOKIE)
    async with firmware_guest(site, desktop.id), proxied.client() as browser:
        browser.cookies.set(COOKIE, own := await site.session("student", SessionKind.COOKIE))
        console = (await browser.post(f"/api/v1/desktops/{desktop.id}/console")).json()
        assert console["url"].startswith(f"wss{proxied.origin.removeprefix('https')}/")
        viewer = websockets.connect(
            console["url"], ssl=proxied.trust, origin=websockets.Origin(proxied.origin), compression=None, proxy=None,
            subprotocols=[websockets.Subprotocol("binary"), websockets.Subprotocol(console["ticket"])],
            additional_headers={"Cookie": f"{COOKIE}={own}"}, ping_interval=None,
        )  # fmt: skip
        async with viewer as screen:
            assert await screen.recv() == b"RFB 003.008\n"
            paths = ("/api/v1/events", "/live/hosts")
            async with stream(proxied, paths[0], cookie) as events, stream(proxied, paths[1], cookie) as pieces:
                readers = [events, pieces]
                await asyncio.gather(*(until(reader, b"host-1") for reader in readers))
                await tell(site, "Room 1", readers)
                await asyncio.gather(*(lives_through_silence(reader) for reader in readers))
                await tell(site, "Room 2", readers)
            await screen.send(b"RFB 003.008\n")
            assert await screen.recv() == b"\x01\x01"  # still the same console: one way to sign in, none
