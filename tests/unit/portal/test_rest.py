"""REST: bad input, limits, and desktops from the wish to the end."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from pupitre import config
from pupitre.config import Settings
from pupitre.domain.command import CommandKind
from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import CopyState
from pupitre.domain.status import Rows
from pupitre.domain.ticket import Purpose, verify
from pupitre.errors import SetupError
from pupitre.pki import issuing
from tests.rigs.portal_site import CLUSTER, Site, an_image, open_site

pytestmark = pytest.mark.anyio

PROBLEM = "application/problem+json"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


def is_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem: dict[str, object] = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code"} <= problem.keys()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["instance"] == answer.request.url.path
    return problem


async def test_every_error_is_a_problem_document(site: Site) -> None:
    async with site.as_user("student") as client:
        is_problem(await client.get("/api/v1/nothing"), 404, "not_found")
        is_problem(await client.put("/api/v1/desktops"), 405, "method_not_allowed")
        is_problem(
            await client.post("/api/v1/desktops", content="{", headers={"Content-Type": "application/json"}),
            400,
            "malformed_json",
        )
        found = is_problem(await client.post("/api/v1/desktops", json={}), 422, "invalid")
        assert found["errors"] == ["body.image: Field required"]
        is_problem(await client.post("/api/v1/desktops", json={"image": "tiny", "more": 1}), 422, "invalid")
        is_problem(await client.get("/api/v1/desktops?limit=0"), 422, "invalid")
        found = is_problem(await client.post("/api/v1/desktops", json={"image": "nope"}), 404, "not_found")
        assert "There are: tiny." in str(found["detail"])
        is_problem(await client.get("/api/v1/hosts"), 403, "forbidden")
        assert (await client.get("/api/v1/desktops")).json() == {"items": [], "next": None}
    async with site.client() as nobody:
        is_problem(await nobody.get("/api/v1/desktops"), 401, "not_signed_in")


async def test_large_bodies_are_refused_before_they_are_parsed(site: Site) -> None:
    async with site.as_user("student") as client:
        large = b'{"image": "' + b"x" * 10_000_000 + b'"}'
        for content in (large, chunks(large)):
            answer = await client.post(
                "/api/v1/desktops", content=content, headers={"Content-Type": "application/json"}
            )
            is_problem(answer, 413, "too_large")
        just_fits = json.dumps({"image": "x" * (64 * 1024 - 20)})
        is_problem(await client.post("/api/v1/desktops", content=just_fits), 422, "invalid")
        assert (await client.get("/api/v1/commands")).json()["items"] == []


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def test_an_image_that_is_not_ready_says_how_far_it_is(site: Site) -> None:
    await site.endpoint.images(
        an_image("big", "Big", state=CopyState.FETCHING, progress=0.42, reason="Unpacking"),
        an_image("bad", "Bad", state=CopyState.FAILED, reason="no space left"),
    )
    async with site.as_user("student") as client:
        found = is_problem(await client.post("/api/v1/desktops", json={"image": "big"}), 409, "conflict")
        assert "42% done" in str(found["detail"])
        assert "Unpacking" in str(found["detail"])
        found = is_problem(await client.post("/api/v1/desktops", json={"image": "bad"}), 409, "conflict")
        assert "no space left" in str(found["detail"])
        assert [image["id"] for image in (await client.get("/api/v1/images")).json()["items"]] == ["bad", "big", "tiny"]
        assert (await client.get("/api/v1/images/big")).json()["progress"] == 0.42


async def test_a_desktop_from_the_wish_to_the_end(site: Site) -> None:
    async with site.as_user("student") as client:
        answer = await client.post("/api/v1/desktops", json={"image": "tiny"})
        assert answer.status_code == 202
        command, desktop = answer.json()["command"], answer.json()["desktop"]
        assert answer.headers["location"] == f"/api/v1/commands/{command}"

        async def state() -> str:
            found = (await client.get(f"/api/v1/desktops/{desktop}")).json()
            listed = (await client.get("/api/v1/desktops")).json()["items"]
            assert listed == ([found] if found["state"] != "gone" else [])
            return str(found["state"])

        assert await state() == "requested", "at once, before the cluster has heard of it"
        is_problem(await client.post(f"/api/v1/desktops/{desktop}/console"), 409, "conflict")
        asked = await site.endpoint.next_command()
        assert asked.id == command
        await site.endpoint.desktop(asked, DesktopState.PREPARING)
        assert await state() == "preparing"
        await site.endpoint.run(asked)
        assert await state() == "running"
        done = (await client.get(f"/api/v1/commands/{command}")).json()
        assert (done["kind"], done["state"], done["desktop"]) == ("boot_desktop", "succeeded", desktop)
        assert done["error"] is None

        stopped = await client.delete(f"/api/v1/desktops/{desktop}")
        assert stopped.status_code == 202
        assert await state() == "stopping", "at once"
        again = await client.delete(f"/api/v1/desktops/{desktop}")
        assert again.json() == stopped.json(), "asked twice is asked once"
        ask = await site.endpoint.next_command()
        assert ask.id == stopped.json()["command"]
        await site.endpoint.desktop(asked, DesktopState.GONE)
        await site.endpoint.succeed(ask)
        assert await state() == "gone"
        is_problem(await client.delete(f"/api/v1/desktops/{desktop}"), 409, "conflict")


async def test_beyond_the_limit(site: Site) -> None:
    async with site.as_user("student") as client:
        sent = (client.post("/api/v1/desktops", json={"image": "tiny"}) for _ in range(8))
        answers = await asyncio.gather(*sent)
        assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
        for answer in answers:
            if answer.status_code == 409:
                is_problem(answer, 409, "limit_reached")
        await site.endpoint.run(await site.endpoint.next_command())
        is_problem(await client.post("/api/v1/desktops", json={"image": "tiny"}), 409, "limit_reached")
        assert len((await client.get("/api/v1/commands")).json()["items"]) == 1


async def test_too_early(tmp_path: Path) -> None:
    async with open_site(tmp_path, min_command_interval=30) as site, site.as_user("teacher") as client:
        assert (await client.post("/api/v1/desktops", json={"image": "tiny"})).status_code == 202
        early = await client.post("/api/v1/desktops", json={"image": "tiny"})
        is_problem(early, 429, "too_early")
        assert 25 <= int(early.headers["retry-after"]) <= 30
        assert len((await client.get("/api/v1/desktops")).json()["items"]) == 1
        async with site.in_browser("teacher") as browser:
            for headers in ({}, {"HX-Request": "true"}):
                page = await browser.post("/desktops", data={"image": "tiny"}, headers=headers)
                assert (page.status_code, "That was too quick: wait" in page.text) == (429, True)
                assert 20 <= int(page.headers["retry-after"]) <= 30


async def test_two_portals_share_one_interval(tmp_path: Path) -> None:
    """The second process knows nothing of the first; the database does."""
    async with open_site(tmp_path, min_command_interval=30) as site, site.as_user("teacher") as client:
        assert (await client.post("/api/v1/desktops", json={"image": "tiny"})).status_code == 202
        await site.stop_web()
        await site.start_web()
        is_problem(await client.post("/api/v1/desktops", json={"image": "tiny"}), 429, "too_early")


@pytest.mark.parametrize(
    ("given", "named"),
    [({"boot": 5}, "command_timeouts.boot"), ({"halt": 0}, "command_timeouts.halt")],
)
def test_impossible_timeout_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, float], named: str
) -> None:
    """A time out that cannot be stops the start with a sentence."""
    monkeypatch.setenv("PUPITRE_HOME", str(tmp_path))
    monkeypatch.setenv("PUPITRE_COMMAND_TIMEOUTS", json.dumps(given))
    with pytest.raises(SetupError) as refused:
        config.load()
    assert f"Setting {named}:" in str(refused.value)
    assert str(refused.value).endswith("or in PUPITRE_COMMAND_TIMEOUTS.")


def test_every_kind_of_command_has_its_time_out() -> None:
    settings = Settings(command_timeout=7, command_timeouts={"boot_desktop": 60})
    found = {kind: settings.timeout_of(kind) for kind in CommandKind}
    slow = (CommandKind.RETIRE_HOST, CommandKind.BOOT_UP_HOST, CommandKind.HALT)
    assert found == dict.fromkeys(CommandKind, 7) | dict.fromkeys(slow, 600) | {CommandKind.BOOT_DESKTOP: 60}
    for kind in CommandKind:
        assert Settings(command_timeouts={kind.value: 5}).timeout_of(kind) == 5


async def test_a_failed_boot_stays_in_sight_until_it_is_put_away(site: Site) -> None:
    async with site.as_user("student") as client:
        asked = (await client.post("/api/v1/desktops", json={"image": "tiny"})).json()
        command = await site.endpoint.next_command()
        await site.endpoint.fail(command, "VM_BOOT_FAILURE", "The disk of the host is full.")
        found = (await client.get(f"/api/v1/desktops/{asked['desktop']}")).json()
        assert found["state"] == "failed"
        assert found["reason"] == "The disk of the host is full."
        assert found["error"] == {"code": "VM_BOOT_FAILURE", "reason": "The disk of the host is full."}
        assert (await client.get("/api/v1/desktops")).json()["items"] == [found]
        second = await client.post("/api/v1/desktops", json={"image": "tiny"})
        assert second.status_code == 202, "it does not count against the limit"
        assert (await client.delete(f"/api/v1/desktops/{asked['desktop']}")).status_code == 204
        assert [seen["id"] for seen in (await client.get("/api/v1/desktops")).json()["items"]] == [
            second.json()["desktop"]
        ]


async def test_tickets_say_what_the_host_will_check(site: Site) -> None:
    desktop = await site.running("student")
    key = issuing.load_ticket_verifier(issuing.directory(site.settings, "gateway"))
    async with site.as_user("student") as program, site.in_browser("student") as browser:
        for client, secret, is_browser in (
            (program, program.headers["Authorization"].removeprefix("Bearer "), False),
            (browser, browser.cookies["pupitre_session"], True),
        ):
            answer = (await client.post(f"/api/v1/desktops/{desktop.id}/console")).json()
            assert answer["url"] == f"ws://127.0.0.1:{site.settings.portal_port}/gateway/v1/console/{desktop.id}"
            assert answer["ticket"] not in answer["url"]
            ticket = verify(answer["ticket"], key, now=time.time())
            assert ticket.purpose is Purpose.CONSOLE
            assert (ticket.user, ticket.desktop, ticket.boot) == (site.users["student"].id, desktop.id, 1)
            assert (ticket.host, ticket.address, ticket.port) == ("host-1", "127.0.0.1", site.console_port)
            assert 25 < ticket.expires - time.time() <= 30
            assert ticket.bearer == hashlib.sha256(secret.encode()).hexdigest()
            assert ticket.browser is is_browser
        again = (await browser.post(f"/api/v1/desktops/{desktop.id}/console")).json()["ticket"]
        assert claims(again)["id"] != ticket.id


def claims(ticket: str) -> dict[str, object]:
    body = ticket.partition(".")[0]
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


async def test_a_picture_comes_from_the_gateway(site: Site) -> None:
    desktop = await site.running("student")
    async with site.in_browser("student") as browser:
        path = f"/api/v1/desktops/{desktop.id}/screenshot"
        away = await browser.get(path)
        assert away.status_code == 307
        assert away.headers["location"].startswith(f"/gateway/v1/screenshot/{desktop.id}?ticket=")
        picture = await browser.get(path, follow_redirects=True)
        assert picture.content.startswith(b"\x89PNG")
        await site.endpoint.status.apply(
            CLUSTER, Rows(desktops=(replace(desktop, state=DesktopState.LOST, reason="Not heard of host-1."),))
        )
        is_problem(await browser.get(path), 409, "conflict")


async def test_lists_come_in_pages(site: Site) -> None:
    async with site.as_user("teacher") as client:
        for _ in range(5):
            await client.post("/api/v1/desktops", json={"image": "tiny"})
        for path in ("/api/v1/desktops", "/api/v1/commands"):
            seen: list[str] = []
            after = ""
            while True:
                page = (await client.get(f"{path}?limit=2{after}")).json()
                seen += [item["id"] for item in page["items"]]
                if page["next"] is None:
                    break
                after = f"&after={page['next']}"
            assert len(seen) == 5
            assert seen == sorted(set(seen), reverse=True)


async def test_administrators_register_hosts_and_add_users(site: Site) -> None:
    async with site.as_user("admin") as admin:
        answer = await admin.post("/api/v1/hosts", json={"name": "lab-2", "address": "10.0.0.2", "port": 7000})
        command = await site.endpoint.next_command()
        assert answer.json() == {"command": command.id}
        await site.endpoint.fail(command, "VM_SERVER_REGISTRATION_ERROR", "10.0.0.2:7000 does not answer.")
        found = (await admin.get(f"/api/v1/commands/{command.id}")).json()
        assert found["error"]["code"] == "VM_SERVER_REGISTRATION_ERROR"
        assert found["desktop"] is None
        (host,) = (await admin.get("/api/v1/hosts")).json()["items"]
        assert (host["name"], host["state"], host["facts"]["vcpus"]) == ("host-1", "ready", 8)
        for bad in ({"name": "Lab 2"}, {"port": 0}, {"port": 70000}, {"address": "a b"}, {"address": ""}):
            whole = {"name": "lab-2", "address": "10.0.0.2", "port": 7000} | bad
            is_problem(await admin.post("/api/v1/hosts", json=whole), 422, "invalid")
        new = {"name": "ana", "role": "teacher", "password": "long enough pw"}
        assert (await admin.post("/api/v1/users", json=new)).json()["role"] == "teacher"
        is_problem(await admin.post("/api/v1/users", json=new), 409, "conflict")
        is_problem(await admin.post("/api/v1/users", json=new | {"name": "bo", "password": "short"}), 422, "invalid")
        assert "ana" in {user["name"] for user in (await admin.get("/api/v1/users")).json()["items"]}


async def test_health_is_public_and_figures_are_not(site: Site) -> None:
    async with site.client() as client:
        assert (await client.get("/healthz")).text == "ok"
        assert (await client.get("/api/v1/images/tiny")).status_code == 401
    own = httpx2.ASGITransport(site.ops.app())
    async with httpx2.AsyncClient(transport=own, base_url="http://ops") as client:
        figures = (await client.get("/metrics")).text
        assert 'method="GET",route="/healthz",status="200"' in figures
        assert 'route="/api/v1/images/{image}",status="401"' in figures
        assert "pupitre_consoles_open" in figures
        assert figures.count("# TYPE pupitre_ready ") == 1
