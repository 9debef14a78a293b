"""Signing in and out, who may send what, and what is too much."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pupitre.config import Settings
from pupitre.errors import Invalid
from pupitre.portal.http.paths import own_path
from pupitre.portal.identity.passwords import hash_password, verify
from tests.rigs.portal_site import PASSWORD, Site, open_site

pytestmark = pytest.mark.anyio


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path, sign_in_per_minute=3) as site:
        yield site


async def test_sign_in_cookie_is_http_only_and_stored_as_hash(site: Site) -> None:
    """A sign in gives a cookie that scripts cannot read and the database holds its hash."""
    async with site.client() as client:
        answer = await client.post(
            "/signin", data={"name": "student", "password": PASSWORD}, headers={"Origin": site.url}
        )
        assert answer.status_code == 303
        assert answer.headers["location"] == "/"
        cookie, known_by = answer.headers.get_list("set-cookie")
        assert known_by.startswith("pupitre_device="), "another cookie, see threats/test_attack_sign_in.py"
        token = re.match(r"pupitre_session=([A-Za-z0-9_-]{43});", cookie)
        assert token
        assert {"HttpOnly", "Path=/", "SameSite=lax"} <= {part.strip() for part in cookie.split(";")}
        assert "Domain" not in cookie
        assert (await client.get("/")).status_code == 200
    for path in (site.settings.home / "db").iterdir():
        assert token[1].encode() not in path.read_bytes()
    with sqlite3.connect(site.settings.home / "db/accounts.sqlite") as database:
        (held,) = database.execute("select password_hash from users where name = 'student'").fetchone()
        assert held.startswith("$argon2id$")


async def test_cookie_is_secure_under_https_with_hsts(tmp_path: Path) -> None:
    """Under https the cookie is secure and the browser is told to stay there."""
    options = {"public_origin": "https://lab.example.org", "behind_proxy": True}
    async with open_site(tmp_path, **options) as site, site.client() as client:
        client.base_url = f"http://127.0.0.1:{site.settings.portal_port}"
        answer = await client.post(
            "/signin", data={"name": "student", "password": PASSWORD}, headers={"Origin": "https://lab.example.org"}
        )
        assert "Secure" in answer.headers["set-cookie"]
        assert answer.headers["strict-transport-security"]
        assert "connect-src 'self' wss://lab.example.org" in answer.headers["content-security-policy"]


async def test_sessions_end_by_sign_out_by_time_and_by_a_new_password(site: Site) -> None:
    async with site.in_browser("student") as browser, site.in_browser("student") as second:
        assert (await browser.post("/signout")).status_code == 303
        assert (await browser.get("/")).headers["location"] == "/signin?next=/"
        changed = await second.post("/account/password", data={"current": PASSWORD, "new": "another long one"})
        assert changed.status_code == 303
        assert (await second.get("/")).status_code == 200, "the browser that changed it stays signed in"
    async with site.client() as client:
        for password, status in ((PASSWORD, 401), ("another long one", 201)):
            answer = await client.post("/api/v1/sessions", json={"name": "student", "password": password})
            assert answer.status_code == status
    async with site.as_user("teacher") as teacher:
        with sqlite3.connect(site.settings.home / "db/accounts.sqlite") as database:
            database.execute("update sessions set expires = 1")
        assert (await teacher.get("/api/v1/desktops")).status_code == 401


async def test_a_cookie_is_no_token_and_a_token_no_cookie(site: Site) -> None:
    async with site.in_browser("student") as browser, site.client() as client:
        cookie = browser.cookies["pupitre_session"]
        answer = await client.get("/api/v1/desktops", headers={"Authorization": f"Bearer {cookie}"})
        assert answer.status_code == 401
        # A request with both is judged by the header alone.
        answer = await browser.get("/api/v1/desktops", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_failures_are_limited_and_successes_are_not(site: Site) -> None:
    """By name and address together: another name at the same address is not concerned."""
    async with site.client() as client:
        for _ in range(5):
            good = await client.post("/api/v1/sessions", json={"name": "student", "password": PASSWORD})
            assert good.status_code == 201
        for name in ("student", "Student", " STUDENT "):
            bad = await client.post("/api/v1/sessions", json={"name": name, "password": "wrong"})
            assert bad.status_code == 401
            assert bad.json()["detail"] == "The name or the password is wrong. Check both and try again."
        other = await client.post("/api/v1/sessions", json={"name": "teacher", "password": PASSWORD})
        assert other.status_code == 201
        limited = await client.post("/api/v1/sessions", json={"name": "student", "password": PASSWORD})
        assert limited.status_code == 429
        assert limited.json()["code"] == "too_early"
        assert 1 <= int(limited.headers["retry-after"]) <= 61
        page = await client.post(
            "/signin", data={"name": "student", "password": PASSWORD}, headers={"Origin": site.url}
        )
        assert page.status_code == 429
        assert "Too many failed sign-ins. Wait" in page.text
        assert "retry-after" in page.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "none"},
    ],
)
async def test_what_another_site_makes_a_browser_send_changes_nothing(site: Site, headers: dict[str, str]) -> None:
    named = {key: value.format(port=site.settings.portal_port) for key, value in headers.items()}
    async with site.in_browser("teacher") as browser:
        del browser.headers["Origin"]
        for path, sent in (
            ("/api/v1/desktops", {"json": {"image": "tiny"}}),
            ("/desktops", {"data": {"image": "tiny"}}),
            ("/signout", {}),
        ):
            answer = await browser.post(path, headers=named, **sent)  # type: ignore[arg-type]
            assert answer.status_code == 403, path
        assert (await browser.get("/api/v1/desktops")).json()["items"] == []
    async with site.client() as client:
        answer = await client.post("/signin", data={"name": "student", "password": PASSWORD}, headers=named)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


async def test_our_own_pages_and_programs_may_change_things(site: Site) -> None:
    async with site.in_browser("teacher") as browser:
        del browser.headers["Origin"]
        for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": site.url}):
            answer = await browser.post("/api/v1/desktops", json={"image": "tiny"}, headers=headers)
            assert answer.status_code == 202
    async with site.as_user("teacher") as program:
        assert (await program.post("/api/v1/desktops", json={"image": "tiny"})).status_code == 202


async def test_loopbacks_other_names_lead_to_ours(site: Site) -> None:
    async with site.client() as client:
        headers = {"Host": f"localhost:{site.settings.portal_port}", "Sec-Fetch-Mode": "navigate"}
        answer = await client.get("/signin?next=/account", headers=headers)
        assert answer.headers["location"] == f"{site.url}/signin?next=/account"
        elsewhere = await client.get("/signin", headers={**headers, "Host": "evil.example"})
        assert elsewhere.status_code == 421


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("/", "/"),
        ("/desktops/1?a=b", "/desktops/1?a=b"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("evil", "/"),
        ("", "/"),
    ],
)
async def test_after_signing_in_one_stays_on_this_site(path: str, safe: str) -> None:
    assert own_path(path) == safe


async def test_passwords() -> None:
    held = hash_password(PASSWORD)
    assert verify(PASSWORD, held)
    assert not verify(PASSWORD + "x", held)
    assert not verify("no one has this password", None)
    assert not verify(PASSWORD, "no hash")
    for bad in ("short", "x" * 513):
        with pytest.raises(Invalid):
            hash_password(bad)


async def test_tokens_from_the_account_page(site: Site) -> None:
    async with site.in_browser("student") as browser:
        page = await browser.post("/account/tokens", data={"days": "30"})
        found = re.search(r'id="new-token" readonly value="([^"]+)"', page.text)
        assert found
        async with site.client(found[1]) as program:
            assert (await program.get("/api/v1/desktops")).status_code == 200
            account = (await browser.get("/account")).text
            assert found[1] not in account, "it is shown once"
            end = re.search(r"/account/tokens/[0-9a-f]{64}/end", account)
            assert end
            async with site.in_browser("other") as other:
                await other.post(end[0])
            assert (await program.get("/api/v1/desktops")).status_code == 200, "another user cannot end it"
            assert (await browser.post(end[0])).status_code == 303
            assert (await program.get("/api/v1/desktops")).status_code == 401
        assert (await browser.post("/account/tokens", data={"days": "99999"})).status_code == 422


async def test_no_secret_is_logged(
    site: Site, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with site.client() as client:
        wrong = await client.post("/api/v1/sessions", json={"name": "student", "password": "canary-password"})
        assert wrong.status_code == 401
        token = (await client.post("/api/v1/sessions", json={"name": "student", "password": PASSWORD})).json()["token"]
    out = "".join(capfd.readouterr()) + caplog.text
    assert "canary-password" not in out
    assert token not in out


async def test_many_wrong_sign_ins_at_once_are_limited_too(tmp_path: Path) -> None:
    async with open_site(tmp_path, sign_in_per_minute=2) as site, site.client() as client:
        sent = (client.post("/api/v1/sessions", json={"name": "ghost", "password": "x"}) for _ in range(12))
        states = [answer.status_code for answer in await asyncio.gather(*sent)]
        assert states.count(401) <= 4
        assert states.count(429) >= 8
        assert Settings.model_fields["sign_in_per_minute"].default == 10
