"""Threats 15, 17 and 18: what other sites, long or crafted input, floods and races can do to the portal."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from pupitre.store.accounts import SessionKind
from tests import ROOT
from tests.rigs.portal_site import Site, open_site
from tests.unit.portal.test_routes import NONE, TABLE

pytestmark = pytest.mark.anyio

OURS = "{origin}"
FOREIGN: tuple[dict[str, str], ...] = (
    {},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://evil.example"},
    {"Origin": f"{OURS}.evil.example"},
    {"Origin": f"{OURS}@evil.example"},
    {"Origin": f"{OURS}/"},
    {"Origin": f"{OURS} http://evil.example"},
    {"Origin": "http://127.0.0.1"},
    {"Referer": f"{OURS}/"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": OURS},
    {"Sec-Fetch-Site": "same-site", "Origin": OURS},
    {"Sec-Fetch-Site": "none", "Origin": OURS},
    {"Sec-Fetch-Site": "Same-Origin,cross-site", "Origin": OURS},
    {"X-Forwarded-Host": "evil.example", "Origin": "http://evil.example"},
)
"""What a request says of where it comes from, when no page of ours sent it."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


async def test_no_other_site_can_make_a_browser_change_anything(site: Site) -> None:
    """Every route that changes something, with a cookie, from everywhere but our own pages."""
    rows = [row for row in TABLE if row.method != "GET"]
    assert len(rows) > 20
    async with site.in_browser("admin") as browser:
        del browser.headers["Origin"]
        for said in FOREIGN:
            headers = {name: value.replace(OURS, site.url) for name, value in said.items()}
            for row in rows:
                path = row.url or row.path.format(desktop=NONE, command=NONE, host="host-1", name="other")
                answer = await browser.request(row.method, path, json=row.json, data=row.form, headers=headers)
                assert answer.status_code == 403, (row.method, path, said)
                assert "set-cookie" not in answer.headers
        assert (await browser.get("/api/v1/commands")).json()["items"] == []
        assert (await browser.get("/api/v1/audit")).json()["items"] == []
        assert len((await browser.get("/api/v1/users")).json()["items"]) == 4


ELSEWHERE = (
    "//evil.example", "///evil.example", "////evil.example", "/\\evil.example", "\\\\evil.example", "\\/evil.example",
    "/\t/evil.example", "/\n/evil.example", "/\r/evil.example", "\t//evil.example", " //evil.example",
    "https:evil.example", "https:/evil.example", "https:///evil.example", "https://evil.example",
    "HTTPS://evil.example", "javascript:alert(1)", "data:text/html,x", "//evil.example/%2f..", "/%09/evil.example",
    "/%5cevil.example", "/%2f/evil.example", "/..//evil.example", "/.//evil.example", "/ｅvil.example",
    "//evil%E3%80%82example", "/@evil.example", "?next=//evil.example", "#//evil.example", ".evil.example",
    "@evil.example", ":80@evil.example", "\x00//evil.example", "/\u2028/evil.example", "/\x0b/evil.example",
    "/signin?next=//evil.example",
)  # fmt: skip


def followed(origin: str, location: str) -> str:
    """Where a browser goes (WHATWG URL): it drops tabs and line ends, and takes ``\\`` for ``/``."""
    cleaned = re.sub(r"[\t\n\r]", "", location.strip("".join(map(chr, range(0x21))))).replace("\\", "/")
    return urljoin(f"{origin}/signin", cleaned)


async def test_signing_in_leads_nowhere_else(site: Site) -> None:
    assert followed(site.url, "/\\evil.example").startswith("http://evil.example"), "the test can tell"
    async with site.in_browser("student") as browser:
        for target in ELSEWHERE:
            answer = await browser.get("/signin", params={"next": target})
            assert answer.status_code == 303, target
            found = urlsplit(followed(site.url, answer.headers["location"]))
            assert f"{found.scheme}://{found.netloc}" == site.url, target
            assert not answer.headers["location"].startswith("//")


async def test_what_is_too_long_is_refused_before_anyone_keeps_it(site: Site) -> None:
    long = "x" * 60_000
    async with site.client() as client, site.as_user("admin") as admin:
        client.headers["Origin"] = site.url
        assert (await client.post("/signin", data={"name": long, "password": "y"})).status_code == 422
        assert (await client.post("/signin", data={"name": "y", "password": long})).status_code == 422
        assert (await client.post("/signin", data={"name": "y", "password": "z", "next": long})).status_code == 422
        assert (await client.post("/api/v1/sessions", json={"name": long, "password": "y"})).status_code == 422
        assert (await admin.post("/api/v1/desktops", json={"image": long})).status_code == 422
        assert (
            await admin.post("/api/v1/users", json={"name": long, "role": "admin", "password": "y"})
        ).status_code == 422
        assert (await admin.get("/api/v1/audit", params={"text": long[:300]})).status_code == 422
        for headers in ({"Authorization": f"Bearer {long}"}, {"Cookie": f"pupitre_session={long}"}):
            answer = await client.get("/api/v1/desktops", headers=headers)
            assert answer.status_code == 401
        missing = await admin.get(f"/api/v1/hosts/{long[:5000]}")
        assert missing.status_code == 404
        assert len(missing.json()["detail"]) < 300
        assert (await admin.get("/api/v1/audit")).json()["items"] == []


LOGGING = """
import logging, sys, structlog
from pathlib import Path
from pupitre.config import Settings
from pupitre.runtime.log import set_up_logging
set_up_logging(Settings(home=Path(sys.argv[1]), log_format=sys.argv[2]), "web")
name = "eve" + chr(10) + "FORGED line" + chr(13) + chr(27) + "[2J"
structlog.get_logger().info(name, name=name, error=ValueError(name))
logging.getLogger("other").warning("Said by %s", name)
"""


@pytest.mark.parametrize("kind", ["text", "json"])
def test_nobody_forges_a_line_of_the_log(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, str(tmp_path), kind], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("eve" in line and "FORGED line" in line for line in lines)
    assert "\x1b" not in done.stderr


async def timed(site: Site, token: str, seconds: float) -> list[float]:
    """How long one user's look at their desktops takes, again and again for so long; sorted."""
    times: list[float] = []
    end = time.monotonic() + seconds
    async with site.client(token) as client:
        while time.monotonic() < end or len(times) < 20:
            begun = time.monotonic()
            assert (await client.get("/api/v1/desktops")).status_code == 200
            times.append(time.monotonic() - begun)
    return sorted(times)


async def test_flood_of_one_user_leaves_others_alone(tmp_path: Path) -> None:
    """A flood of one user is bounded and leaves the others alone."""
    count = 1000
    async with open_site(tmp_path, min_command_interval=0.5, teacher_desktops=count) as site:
        token = await site.session("teacher", SessionKind.BEARER)
        other = await site.session("other", SessionKind.BEARER)
        alone = await timed(site, other, 1)
        begun = time.monotonic()
        flood = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.rigs.start_flood", str(site.settings.portal_port), token, str(count)),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        beside, (out, _) = await asyncio.gather(timed(site, other, 1), flood.communicate())
        took = time.monotonic() - begun
        found = json.loads(out)
        async with site.as_user("teacher") as teacher:
            written = (await teacher.get("/api/v1/commands?limit=200")).json()["items"]
    assert found["202"] + found["429"] == count, found
    assert found["retry-after"] == found["429"]
    assert 1 <= found["202"] <= took / 0.5 + 1
    assert len(written) == found["202"], "what was refused left nothing behind"
    worst, usual = beside[int(len(beside) * 0.99)], alone[int(len(alone) * 0.99)]
    assert worst < max(20 * usual, 2), (worst, usual)


async def test_of_two_hundred_starts_at_once_exactly_the_limit_passes(tmp_path: Path) -> None:
    async with open_site(tmp_path, teacher_desktops=7) as site, site.as_user("teacher") as teacher:
        sent = (teacher.post("/api/v1/desktops", json={"image": "tiny"}) for _ in range(200))
        answers = [answer.status_code for answer in await asyncio.gather(*sent)]
        assert (answers.count(202), answers.count(409)) == (7, 193)
        assert len((await teacher.get("/api/v1/desktops")).json()["items"]) == 7
