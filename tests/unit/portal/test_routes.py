"""Every route, asked by everyone: one table. A route without a row fails."""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import cast

import httpx2
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route

from pupitre.gateway.app import create_app as create_gateway
from pupitre.gateway.service import Gateway
from pupitre.portal import pages
from pupitre.portal.http import ops
from pupitre.portal.http.app import REST, create_app
from tests.rigs.portal_site import PASSWORD, Site, open_site

pytestmark = pytest.mark.anyio

WHO = ("nobody", "student", "other", "teacher", "admin")
"""``student`` owns the desktop and the command of the table; ``other`` is a student too."""
NONE = "00000000-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Row:
    """What each of `WHO` is answered. ``page``: asked with a cookie, as browsers do."""

    method: str
    path: str
    answers: tuple[int, int, int, int, int]
    json: dict[str, object] | None = None
    form: dict[str, str] | None = None
    page: bool = False
    stream: bool = False
    url: str | None = None


OWN = (401, 200, 404, 404, 404)
ALL = (401, 200, 200, 200, 200)
ADMIN = (401, 403, 403, 403, 200)
ORDER = (401, 403, 403, 403, 202)
PUBLIC = (200, 200, 200, 200, 200)
PAGE = (303, 403, 403, 403, 200)
FORM = (401, 403, 403, 403, 303)
HOST_FORM = {"label": "Room 12", "address": "10.0.0.1", "port": "7000", "mac": ""}
"""Administrators' pages and forms."""
AS_STARLETTE = {"/api/openapi.json"}
"""Starlette's own route, which takes HEAD too."""
GUARDS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
CLOCK = re.compile(r'data-clock="[0-9]+"|[0-9]+:[0-9]{2}')
"""When a page was made, and how long its sign-in lasts from then on."""
PARAMETER = re.compile(r"\{\w+\}")
TABLE = (
    Row("GET", "/api/v1/images", ALL),
    Row("GET", "/api/v1/images/{image}", ALL, url="/api/v1/images/tiny"),
    Row("GET", "/api/v1/commands", ALL),
    Row("GET", "/api/v1/commands/{command}", OWN),
    Row("GET", "/api/v1/desktops", ALL),
    Row("GET", "/api/v1/desktops/{desktop}", OWN),
    Row("POST", "/api/v1/desktops/{desktop}/console", OWN),
    Row("POST", "/api/v1/desktops/{desktop}/viewer", (401, 409, 404, 404, 404)),  # this host lets no viewer in
    Row("GET", "/api/v1/authority", ALL),
    Row("GET", "/api/v1/desktops/{desktop}/screenshot", (401, 307, 404, 404, 404)),
    Row("GET", "/api/v1/events", ALL, stream=True),
    Row("GET", "/api/v1/hosts", ADMIN),
    Row("POST", "/api/v1/hosts", ORDER, json={"name": "h2", "address": "10.0.0.2", "port": 9}),
    Row("GET", "/api/v1/hosts/{host}", ADMIN, url="/api/v1/hosts/host-1"),
    Row("PATCH", "/api/v1/hosts/{host}", ORDER, json={"label": "Room 12"}, url="/api/v1/hosts/host-1"),
    Row("POST", "/api/v1/hosts/{host}/retire", ORDER, json={"unregister": False}, url="/api/v1/hosts/host-1/retire"),
    Row("POST", "/api/v1/hosts/{host}/boot", ORDER, url="/api/v1/hosts/host-1/boot"),
    Row("POST", "/api/v1/cluster/halt", ORDER, json={"hosts": False}),
    Row("GET", "/api/v1/status", ALL),
    Row("GET", "/api/v1/audit", ADMIN),
    Row("GET", "/api/v1/locks", ADMIN),
    Row("DELETE", "/api/v1/locks/{lock}", (401, 403, 403, 403, 404), url="/api/v1/locks/none"),
    Row("GET", "/api/v1/users", ADMIN),
    Row(
        "POST",
        "/api/v1/users",
        (401, 403, 403, 403, 201),
        json={"name": "new", "role": "student", "password": "long enough pw"},
    ),
    Row("PATCH", "/api/v1/users/{name}", ADMIN, json={"role": "teacher"}, url="/api/v1/users/new"),
    Row("DELETE", "/api/v1/users/{name}", (401, 403, 403, 403, 204), url="/api/v1/users/new"),
    Row("POST", "/api/v1/sessions", (201, 201, 201, 201, 201), json={"name": "other", "password": PASSWORD}),
    Row("POST", "/api/v1/desktops", (401, 409, 202, 202, 202), json={"image": "tiny"}),
    Row("DELETE", "/api/v1/desktops/{desktop}", (401, 202, 404, 404, 404)),
    Row("GET", "/api/openapi.json", PUBLIC),
    Row("GET", "/healthz", PUBLIC),
    Row("GET", "/signin", (200, 303, 303, 303, 303), page=True),
    Row("POST", "/signin", (303, 303, 303, 303, 303), form={"name": "other", "password": PASSWORD}, page=True),
    Row("GET", "/", (303, 200, 200, 200, 200), page=True),
    Row("GET", "/live/desktops", (303, 200, 200, 200, 200), page=True, stream=True),
    Row("GET", "/live/hosts", (303, 403, 403, 403, 200), page=True, stream=True),
    Row("GET", "/desktops/{desktop}", (303, 200, 404, 404, 404), page=True),
    Row("GET", "/desktops/{desktop}/stop", (303, 200, 404, 404, 404), page=True),
    Row("POST", "/desktops", (401, 409, 409, 303, 303), form={"image": "tiny"}, page=True),
    Row("POST", "/desktops/{desktop}/stop", (401, 303, 404, 404, 404), page=True),
    Row("GET", "/admin/hosts", (303, 403, 403, 403, 200), page=True),
    Row(
        "POST",
        "/admin/hosts",
        (401, 403, 403, 403, 303),
        form={"name": "h3", "address": "10.0.0.3", "port": "9"},
        page=True,
    ),
    Row("GET", "/admin/hosts/{host}", PAGE, url="/admin/hosts/host-1", page=True),
    Row("POST", "/admin/hosts/{host}", FORM, form=HOST_FORM, url="/admin/hosts/host-1", page=True),
    Row("POST", "/admin/hosts/{host}/boot-up", FORM, url="/admin/hosts/host-1/boot-up", page=True),
    Row("GET", "/admin/hosts/{host}/{way}", PAGE, url="/admin/hosts/host-1/unregister", page=True),
    Row("POST", "/admin/hosts/{host}/{way}", FORM, url="/admin/hosts/host-1/shut-down", page=True),
    Row("GET", "/live/hosts/{host}", PAGE, url="/live/hosts/host-1", page=True, stream=True),
    Row("GET", "/admin/halt", PAGE, page=True),
    Row("POST", "/admin/halt", FORM, form={"cluster": "main"}, page=True),
    Row("GET", "/admin/locks", PAGE, page=True),
    Row("POST", "/admin/locks/{lock}/lift", FORM, url="/admin/locks/none/lift", page=True),
    Row("GET", "/admin/audit", PAGE, page=True),
    Row("POST", "/desktops/{desktop}/viewer", (401, 409, 404, 404, 404), page=True),
    Row("GET", "/account", (303, 200, 200, 200, 200), page=True),
    Row("POST", "/account/tokens", (401, 200, 200, 200, 200), form={"days": "1"}, page=True),
    Row("POST", "/account/tokens/{token_hash}/end", (401, 303, 303, 303, 303), page=True, url="/account/tokens/x/end"),
    Row(
        "POST",
        "/account/password",
        (401, 422, 422, 422, 422),
        form={"current": "not it", "new": "long enough pw"},
        page=True,
    ),
    Row("POST", "/signout", (303, 303, 303, 303, 303), page=True),
    Row("GET", "/api/v1/sessions/current", ALL),
    Row("POST", "/api/v1/sessions/current/extend", (401, 409, 409, 409, 409)),  # these are tokens
    Row("POST", "/account/extend", (401, 303, 303, 303, 303), page=True),
    Row("DELETE", "/api/v1/sessions/current", (401, 204, 204, 204, 204)),
)


@pytest.fixture
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with open_site(tmp_path_factory.mktemp("routes")) as site:
        yield site


def assert_guarded(answer: httpx2.Response) -> None:
    """Every security header, once, as every other answer has it."""
    for name, value in GUARDS.items():
        assert answer.headers.get_list(name) == [value], (answer.request.method, answer.url, answer.status_code, name)
    assert len(answer.headers.get_list("content-security-policy")) == 1
    assert len(answer.headers.get_list("cache-control")) == 1
    assert len(answer.headers.get_list("date")) == 1


async def ask(client: httpx2.AsyncClient, row: Row, path: str) -> int:
    async with client.stream(row.method, path, json=row.json, data=row.form) as answer:
        if not row.stream:
            await answer.aread()
        if answer.status_code >= 400 and path.startswith("/api/"):
            assert answer.headers["content-type"] == "application/problem+json"
        assert_guarded(answer)
        return answer.status_code


@pytest.mark.slow
async def test_every_route_answers_everyone_as_the_table_says(site: Site) -> None:
    desktop = await site.running("student")
    async with site.as_user("student") as student:
        command = (await student.get("/api/v1/commands")).json()["items"][0]["id"]
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for row in TABLE:
        path = row.url or row.path.format(desktop=desktop.id, command=command)
        answers = []
        for who in WHO:
            if who == "nobody":
                async with site.client() as client:
                    client.headers["Origin"] = site.url
                    answers.append(await ask(client, row, path))
            else:
                opened = site.in_browser(who) if row.page else site.as_user(who)
                async with opened as client:
                    answers.append(await ask(client, row, path))
        found[row.method, row.path] = tuple(answers)
    assert found == {(row.method, row.path): row.answers for row in TABLE}


async def test_anothers_thing_looks_as_if_it_did_not_exist(site: Site) -> None:
    desktop = await site.running("student")
    async with site.as_user("student") as student:
        command = (await student.get("/api/v1/commands")).json()["items"][0]["id"]
    rows = [row for row in TABLE if "{desktop}" in row.path or "{command}" in row.path]
    assert {row.answers[2:] for row in rows} == {(404, 404, 404)}
    for row in rows:
        for who in ("other", "admin"):
            async with site.in_browser(who) if row.page else site.as_user(who) as client:
                real, invented = [
                    await client.request(row.method, row.path.format(desktop=ids[0], command=ids[1]), data=row.form)
                    for ids in ((desktop.id, command), (NONE, NONE))
                ]
            assert real.status_code == invented.status_code == 404, row
            shown = real.text.replace(desktop.id, NONE).replace(command, NONE)
            assert CLOCK.sub("", shown) == CLOCK.sub("", invented.text), row


async def test_no_other_method_is_taken(site: Site) -> None:
    methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"}
    async with site.in_browser("admin") as browser, site.as_user("admin") as program:
        for path in {row.path for row in TABLE}:
            taken = {row.method for row in TABLE if re.fullmatch(PARAMETER.sub("[^/]+", row.path), path)}
            if path in AS_STARLETTE:
                taken |= {"HEAD"}
            for method in sorted(methods - taken):
                client = program if path.startswith("/api/") else browser
                answer = await client.request(method, path)
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) <= taken, (method, path)


async def test_permission_is_checked_before_body(site: Site) -> None:
    """No answer about a body, or about whether a thing exists, for someone who may not ask."""
    rows = [row for row in TABLE if row.answers[0] == 401 and row.method != "GET" and not row.page]
    async with site.client() as nobody, site.as_user("student") as student:
        for row in rows:
            path = row.path.format(desktop=NONE, command=NONE, host="nowhere", name="nobody", lock="none")
            assert (await nobody.request(row.method, path, json={"wrong": 1})).status_code == 401, row
            if row.answers[1] == 403:
                assert (await student.request(row.method, path, json={"wrong": 1})).status_code == 403, row


def own_routes(router: APIRouter, prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in router.routes:
        assert isinstance(route, APIRoute)
        yield from ((method, prefix + route.path) for method in route.methods or ())


async def test_every_route_has_a_row(site: Site) -> None:
    app = create_app(site.settings)
    routers = [*(module.router for module in REST), ops.router, *pages.ROUTERS]
    found: set[tuple[str, str]] = set()
    for module in REST:
        found |= set(own_routes(module.router, "/api/v1"))
    for router in (ops.router, *pages.ROUTERS):
        found |= set(own_routes(router))
    others = [route for route in app.routes if isinstance(route, Route | Mount)]
    assert len(app.routes) == len(others) + len(routers), "a router that this test does not know"
    found |= {("GET", route.path) for route in others if not route.path.startswith("/static")}
    assert found == {(row.method, row.path) for row in TABLE}
    documented = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert documented == {row for row in found if row[1].startswith("/api/v1/")}


def gateway_paths() -> set[str]:
    return {str(getattr(route, "path")) for route in create_gateway(cast(Gateway, None), alone=True).routes}  # noqa: B009


def every_path(site: Site) -> list[str]:
    """One address of each route of portal and gateway, of files, and of what is not there."""
    app = create_app(site.settings)
    files = [route.path for route in app.routes if isinstance(route, Route | Mount) and "/static" in route.path]
    assert len(files) > 5
    portal = [row.url or row.path for row in TABLE]
    own = ["/static/base.css", "/static/none.css", "/static", "/", "/none", "/api/none", "/gateway/none", "/gateway"]
    paths = [PARAMETER.sub("host-1", path) for path in (*portal, *files, *gateway_paths(), *own)]
    return list(dict.fromkeys(paths))


@pytest.mark.attack
async def test_foreign_host_gets_a_problem_at_every_route(site: Site) -> None:
    async with site.in_browser("admin") as browser:
        for path in every_path(site):
            for method in ("GET", "POST", "OPTIONS"):
                answer = await browser.request(method, path, headers={"Host": "evil.example"})
                assert answer.status_code == 421, (method, path)
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["code"] == "misdirected_request"
                assert site.url in answer.json()["detail"]
                assert "evil" not in answer.text
                assert "location" not in answer.headers
                assert_guarded(answer)


@pytest.mark.attack
async def test_no_route_redirects_to_another_form_of_itself(site: Site) -> None:
    async with site.in_browser("admin") as browser:
        for path in every_path(site):
            other = path.rstrip("/") if path.endswith("/") else f"{path}/"
            if not other:
                continue
            answer = await browser.get(other)
            assert not answer.has_redirect_location, (other, answer.headers["location"])
            assert answer.status_code in {404, 405} or path.startswith("/static/"), other
            assert_guarded(answer)


async def test_every_answer_has_the_same_security_headers(site: Site) -> None:
    """Files, their 304s and parts, problems, redirects, wrong methods, answers of the gateway, too long bodies."""
    seen: set[int] = set()
    policies: set[str] = set()
    async with site.in_browser("admin") as browser:
        for path in every_path(site):
            if path.startswith("/live") or path.endswith("/events"):
                continue
            for method in ("GET", "HEAD", "TRACE", "DELETE"):
                answer = await browser.request(method, path)
                seen.add(answer.status_code)
                policies.add(answer.headers["content-security-policy"])
                assert_guarded(answer)
        tag = (await browser.get("/static/base.css")).headers["etag"]
        for headers in ({"If-None-Match": tag}, {"Range": "bytes=0-9"}, {"Range": "bytes=999999999-"}):
            answer = await browser.get("/static/base.css", headers=headers)
            seen.add(answer.status_code)
            assert_guarded(answer)
        large = await browser.post("/api/v1/sessions", content=bytes(1 << 17))
        seen.add(large.status_code)
        assert_guarded(large)
    assert len(policies) == 1
    assert {200, 206, 304, 403, 404, 405, 413, 416} <= seen


HOSTS: tuple[tuple[list[str], int], ...] = (
    ([], 400),
    (["127.0.0.1:{port}", "evil.example"], 400),
    (["127.0.0.1:{port}", "127.0.0.1:{port}"], 400),
    (["evil.example"], 421),
    (["127.0.0.1.evil.example"], 421),
    (["127.0.0.1@evil.example"], 400),
    (["evil.example#127.0.0.1"], 400),
    (["localhost.evil.example:80"], 421),
    (["10.0.0.7"], 421),
    (["[::ffff:10.0.0.7]"], 421),
    (["0.0.0.0"], 400),  # noqa: S104
    (["2130706433"], 400),
    ([""], 400),
    (["127.0.0.1:port"], 400),
    (["127.0.0.1:{port}"], 200),
    (["127.0.0.1"], 200),
    (["LOCALHOST:1"], 200),
    (["localhost."], 200),
    (["[::1]:{port}"], 200),
)


@pytest.mark.attack
async def test_host_is_served_or_refused_at_pages_and_consoles(site: Site) -> None:
    """The same at the portal, at the gateway, and where a WebSocket is asked for. X-Forwarded-Host changes nothing."""
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: {site.url}\r\n"
        "Sec-WebSocket-Protocol: binary, none\r\n"
    )
    forged = f"X-Forwarded-Host: 127.0.0.1:{site.settings.portal_port}\r\nX-Forwarded-For: 10.0.0.1\r\n"
    wanted = (
        ("/healthz", "Connection: close\r\n", 200),
        ("/gateway/healthz", "Connection: close\r\n", 200),
        ("/gateway/v1/console/d1", upgrade, 403),
    )
    for (hosts, status), (path, more, good) in itertools.product(HOSTS, wanted):
        lines = "".join(f"Host: {host.format(port=site.settings.portal_port)}\r\n" for host in hosts)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.settings.portal_port)
        writer.write(f"GET {path} HTTP/1.1\r\n{lines}{forged}{more}\r\n".encode())
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == (good if status == 200 else status), (hosts, path, answer)
        for name, value in GUARDS.items():
            assert f"\r\n{name}: {value}".lower().encode() in head.lower(), (path, name)
        if status != 200:
            assert b"application/problem+json" in head
            assert json.loads(body)["status"] == status
