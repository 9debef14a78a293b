"""The address of whoever asks, in the audit log of a real web process, with and without a proxy's word."""

from pathlib import Path

import httpx2
import pytest

from tests.rigs.portal_site import Site, open_site

pytestmark = [pytest.mark.anyio, pytest.mark.attack]

PROXY, STRANGER = "127.0.0.7", "127.0.0.66"
"""Both on the loopback, where a program may take any address of 127.0.0.0/8."""


async def seen_from(site: Site, source: str, *lines: tuple[str, str]) -> str:
    """The address in the audit log after a failed sign-in from ``source`` with these headers."""
    transport = httpx2.AsyncHTTPTransport(local_address=source)
    async with httpx2.AsyncClient(base_url=site.url, transport=transport) as client:
        answer = await client.post(
            "/api/v1/sessions", json={"name": "nobody", "password": "x"}, headers=[*lines, ("Connection", "close")]
        )
    assert answer.status_code == 401
    async with site.as_user("admin") as admin:
        return str((await admin.get("/api/v1/audit")).json()["items"][0]["origin"])


async def test_only_a_trusted_proxy_names_another_address(tmp_path: Path) -> None:
    spoofed = ("X-Forwarded-For", "192.0.2.1")
    options = {"behind_proxy": True, "trusted_proxies": [PROXY], "public_origin": None}
    async with open_site(tmp_path, **options) as site:
        assert await seen_from(site, PROXY, spoofed) == "192.0.2.1"
        assert await seen_from(site, STRANGER, spoofed) == STRANGER
        assert await seen_from(site, "127.0.0.1", spoofed) == "127.0.0.1"  # named proxies replace the default
        assert await seen_from(site, PROXY, ("X-Forwarded-For", "6.6.6.6"), spoofed) == "192.0.2.1"
        assert await seen_from(site, PROXY, ("X-Forwarded-For", "6.6.6.6, garbage")) == PROXY
        for name in ("Forwarded", "X-Real-IP", "Client-IP", "True-Client-IP", "CF-Connecting-IP"):
            value = "for=192.0.2.1" if name == "Forwarded" else "192.0.2.1"
            assert await seen_from(site, PROXY, (name, value)) == PROXY


async def test_without_a_proxy_nobody_names_another_address(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        assert await seen_from(site, "127.0.0.1", ("X-Forwarded-For", "192.0.2.1")) == "127.0.0.1"
