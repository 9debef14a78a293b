"""Who did what, from where: in the audit log, whole, without a secret, and for administrators alone."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pupitre.domain.command import DestroyDesktop
from pupitre.store.audit import AuditEntry, AuditLog
from tests.rigs.portal_site import PASSWORD, Site, open_site

pytestmark = pytest.mark.anyio
AUDIT = "/api/v1/audit"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


async def entries(site: Site, **filters: str | int) -> list[dict[str, Any]]:
    """The oldest first."""
    async with site.as_user("admin") as admin:
        answer = await admin.get(AUDIT, params=filters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found[::-1]


def told(found: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [(entry["actor"], entry["action"], entry["subject"], entry["outcome"]) for entry in found]


async def test_sign_ins_tokens_and_passwords(site: Site) -> None:
    async with site.client() as client:
        client.headers["Origin"] = site.url
        bad = {"name": "student", "password": "canary-wrong-password"}
        assert (await client.post("/api/v1/sessions", json=bad)).status_code == 401
        assert (await client.post("/signin", data=bad | {"name": "x" * 64})).status_code == 401
        assert (await client.post("/signin", data={"name": "student", "password": PASSWORD})).status_code == 303
        page = await client.post("/account/tokens", data={"days": "30"})
        (token,) = re.findall(r'id="new-token" readonly value="([^"]+)"', page.text)
        (end,) = re.findall(r"/account/tokens/[0-9a-f]{64}/end", page.text)[-1:]
        hashes = re.findall(r"/account/tokens/([0-9a-f]{64})/end", page.text)
        assert (await client.post(end)).status_code == 303
        wrong = {"current": "canary-not-it", "new": "canary-new-password"}
        assert (await client.post("/account/password", data=wrong)).status_code == 422
        assert (await client.post("/account/password", data=wrong | {"current": PASSWORD})).status_code == 303
        assert (await client.post("/signout")).status_code == 303
    found = await entries(site)
    mark = end.split("/")[3][:8]
    assert told(found) == [
        ("student", "sign_in", "", "refused"),
        ("x" * 64, "sign_in", "", "refused"),
        ("student", "sign_in", "", "done"),
        ("student", "token_made", found[3]["subject"], "done"),
        ("student", "token_revoked", mark, "done"),
        ("student", "password_changed", "", "refused"),
        ("student", "password_changed", "student", "done"),
        ("student", "sign_out", found[-1]["subject"], "done"),
    ]
    assert {entry["origin"] for entry in found} == {"127.0.0.1"}
    assert [entry["actor_id"] for entry in found] == [
        "" if entry["actor"].startswith("x") else site.users["student"].id for entry in found
    ]
    for secret in ("canary", PASSWORD, token, *hashes):
        assert secret not in str(found)


async def test_users_come_change_and_go_with_all_they_had_open(site: Site) -> None:
    desktop = await site.running("student")
    async with site.as_user("admin") as admin, site.as_user("other") as other, site.as_user("student") as student:
        new = {"name": "ana", "role": "student", "password": "canary long enough"}
        assert (await admin.post("/api/v1/users", json=new)).status_code == 201
        assert (await admin.post("/api/v1/users", json=new)).status_code == 409
        assert (await other.get("/api/v1/status")).status_code == 200
        changed = await admin.patch("/api/v1/users/other", json={"role": "teacher"})
        assert changed.json() == {"id": site.users["other"].id, "name": "other", "role": "teacher", "display_name": ""}
        assert (await other.get("/api/v1/status")).status_code == 401, "what was open with the old rights has ended"
        assert (await student.get("/api/v1/status")).status_code == 200
        assert (await admin.delete("/api/v1/users/student")).status_code == 204
        assert (await student.get("/api/v1/status")).status_code == 401
        stop = await site.endpoint.next_command()
        assert stop.order == DestroyDesktop(desktop.id), "nobody else could stop it"
        for answer in (
            await admin.delete("/api/v1/users/student"),
            await admin.patch("/api/v1/users/student", json={"role": "admin"}),
        ):
            assert answer.status_code == 404
        for answer in (
            await admin.delete("/api/v1/users/admin"),
            await admin.patch("/api/v1/users/admin", json={"role": "student"}),
        ):
            assert answer.status_code == 409, "the last administrator cannot go by mistake"
    found = await entries(site, user="admin")
    assert [(entry["action"], entry["subject"], entry["detail"]) for entry in found] == [
        ("user_added", "ana", "student"),
        ("role_changed", "other", "from student to teacher"),
        ("user_removed", "student", "student"),
    ]
    assert "canary" not in str(found)


async def test_a_command_and_its_outcome(site: Site) -> None:
    desktop = await site.running("student")
    async with site.as_user("student") as student:
        assert (await student.post("/api/v1/desktops", json={"image": "tiny"})).status_code == 409
    wish, outcome = await entries(site, action="boot_desktop")
    assert wish["command"] == outcome["command"]
    assert told([wish, outcome]) == [
        ("student", "boot_desktop", desktop.id, ""),
        ("student", "boot_desktop", desktop.id, "VM_CONNECTION_DATA"),
    ]
    assert (wish["origin"], outcome["origin"]) == ("127.0.0.1", "")
    assert await entries(site, text=wish["command"]) == [wish, outcome]


async def test_filters_and_pages(site: Site) -> None:
    async with site.as_user("admin") as admin:
        for number in range(5):
            await admin.post("/api/v1/cluster/halt", json={"hosts": bool(number % 2)})
        first = (await admin.get(AUDIT, params={"limit": 2})).json()
        second = (await admin.get(AUDIT, params={"limit": 2, "after": first["next"]})).json()
        last = (await admin.get(AUDIT, params={"limit": 2, "after": second["next"]})).json()
        seen = [*first["items"], *second["items"], *last["items"]]
        assert last["next"] is None
        assert seen == (await admin.get(AUDIT)).json()["items"]
        assert len({entry["id"] for entry in seen}) == 5
        middle = seen[2]["at"]

        async def count(**filters: str) -> int:
            answer: httpx2.Response = await admin.get(AUDIT, params=filters)
            return len(answer.json()["items"])

        assert await count(since=middle) + await count(until=middle) == 5
        assert await count(user="admin", action="halt") == 5
        assert await count(user="student") == 0
        assert await count(until="2020-01-01") == 0
        for wrong in ({"since": "yesterday"}, {"limit": "0"}, {"text": "x" * 256}):
            assert (await admin.get(AUDIT, params=wrong)).status_code == 422


async def test_behind_a_proxy_the_origin_is_the_browsers(tmp_path: Path) -> None:
    async with open_site(tmp_path, behind_proxy=True) as site, site.client() as client:
        client.headers["X-Forwarded-For"] = "192.0.2.7"
        await client.post("/api/v1/sessions", json={"name": "student", "password": "wrong"})
        (found,) = await entries(site, action="sign_in")
    assert found["origin"] == "192.0.2.7"


async def test_without_a_proxy_nobody_chooses_their_origin(site: Site) -> None:
    async with site.client() as client:
        client.headers["X-Forwarded-For"] = "192.0.2.7"
        await client.post("/api/v1/sessions", json={"name": "student", "password": "wrong"})
    (found,) = await entries(site, action="sign_in")
    assert found["origin"] == "127.0.0.1"


@pytest.mark.parametrize("at", [2**62, -(2**62), 253_402_300_800_000])
async def test_a_stored_time_that_none_has_is_shown_unknown(site: Site, at: int) -> None:
    """Earlier versions took any number that a host named."""
    line = AuditEntry(at=at, actor="cluster", actor_name="cluster", action="overlay_removed", detail="from before")
    await AuditLog(site.endpoint.commands.database).add(line)
    [entry] = await entries(site, action="overlay_removed")
    assert (entry["id"], entry["at"], entry["detail"]) == (line.id, None, "from before")
    async with site.in_browser("admin") as admin:
        page = await admin.get("/admin/audit", params={"action": "overlay_removed"})
        assert page.status_code == 200
        assert "time unknown" in page.text
    async with site.as_user("admin") as admin:
        environment = {
            "PUPITRE_TOKEN": admin.headers["authorization"].split()[1],
            "PUPITRE_HOME": str(site.settings.home),
        }
        url = {"PUPITRE_PORTAL_PORT": site.url.rsplit(":", 1)[1]}
        command = [sys.executable, "-m", "pupitre", "audit", "--action", "overlay_removed"]
        for option, shown in (("--limit=9", "unknown"), ("--csv", "from before"), ("--json", '"at": null')):
            ran = await asyncio.to_thread(
                subprocess.run, [*command, option], env=os.environ | environment | url, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert ran.returncode == 0, ran.stderr
            assert shown in ran.stdout
