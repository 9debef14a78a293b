"""Administrators' orders over REST, the words of every outcome, and what is said while the cluster is out of reach."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest

from pupitre.domain.command import (
    BootUpHost,
    Command,
    CommandEvent,
    CommandKind,
    CommandState,
    ConfigureHost,
    DestroyDesktop,
    Fault,
    Halt,
    Order,
    RegisterHost,
    RetireHost,
)
from pupitre.domain.desktop import DesktopState
from pupitre.domain.status import ClusterLink, Rows
from pupitre.portal.commands import why
from pupitre.portal.live.freshness import worst
from tests.rigs.portal_site import CLUSTER, Site, now, open_site

pytestmark = pytest.mark.anyio

HOST = "/api/v1/hosts/host-1"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as site:
        yield site


@pytest.mark.parametrize(
    ("method", "path", "body", "order"),
    [
        (
            "POST",
            "/api/v1/hosts",
            {"name": "lab-2", "address": "10.0.0.2", "port": 7000, "edition": True, "mac": "52:54:00:AB:cd:01"},
            RegisterHost("lab-2", "10.0.0.2", 7000, edition=True, mac="52:54:00:ab:cd:01"),
        ),
        ("POST", f"{HOST}/retire", {"unregister": True}, RetireHost("host-1", unregister=True)),
        (
            "POST",
            "/api/v1/hosts/Room%2012/retire",
            {"unregister": False, "at_once": True},
            RetireHost("host-1", unregister=False, at_once=True),
        ),
        ("POST", "/api/v1/hosts/127.0.0.1/boot", None, BootUpHost("host-1")),
        ("PATCH", HOST, {"label": " Room 7 "}, ConfigureHost("host-1", label="Room 7")),
        (
            "PATCH",
            HOST,
            {"address": "::1", "port": 9, "edition": False, "mac": ""},
            ConfigureHost("host-1", address="::1", port=9, edition=False, mac=""),
        ),
        ("POST", "/api/v1/cluster/halt", {"hosts": True}, Halt(hosts=True)),
    ],
)
async def test_each_order_is_written_as_one_command(
    site: Site, method: str, path: str, body: object, order: Order
) -> None:
    await site.endpoint.host(label="Room 12")
    async with site.as_user("admin") as admin:
        answer = await admin.request(method, path, json=body)
        assert answer.status_code == 202, answer.text
        command = await site.endpoint.next_command()
        assert command.order == order
        assert answer.json() == {"command": command.id}
        assert answer.headers["location"] == f"/api/v1/commands/{command.id}"
        seconds = site.settings.timeout_of(order.kind)
        assert command.deadline - command.created == seconds * 1000
        await site.endpoint.succeed(command)
        found = (await admin.get(answer.headers["location"])).json()
    assert (found["outcome"], found["state"], found["error"]) == ("COMMAND_EXECUTED", "succeeded", None)
    assert found["subject"] == command.subject


def problem(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"]) + str(answer.json().get("errors") or "")


async def test_impossible_host_change_is_refused_in_words(site: Site) -> None:
    """What cannot be is refused in words and nothing is written."""
    await site.endpoint.host(label="Room 12")
    async with site.as_user("admin") as admin:
        for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/boot"), ("POST", "/retire")):
            body = {"unregister": True} if path == "/retire" else {"port": 1}
            answer = await admin.request(method, f"/api/v1/hosts/nowhere{path}", json=body)
            assert "There is no host 'nowhere'. There are: Room 12." in problem(answer, 404)
        assert "Nothing is to be changed" in problem(await admin.patch(HOST, json={}), 422)
        for bad in ({"mac": "52:54"}, {"label": "a\nb"}, {"label": "x" * 65}, {"port": 0}, {"name": "y"}):
            assert "body" in problem(await admin.patch(HOST, json=bad), 422)
        assert "unregister" in problem(await admin.post(f"{HOST}/retire", json={}), 422)
        assert (await admin.get("/api/v1/commands")).json()["items"] == []


async def test_a_host_as_it_is_shown(site: Site) -> None:
    await site.endpoint.host(label="Room 12", mac="52:54:00:ab:cd:01", viewer_port=7100)
    await site.running("student")
    async with site.as_user("admin") as admin:
        by_name, by_label = [(await admin.get(f"/api/v1/hosts/{key}")).json() for key in ("host-1", "Room 12")]
        (listed,) = (await admin.get("/api/v1/hosts")).json()["items"]
    assert by_name == by_label == listed
    expected = {"name": "host-1", "label": "Room 12", "mac": "52:54:00:ab:cd:01", "viewer_port": 7100, "desktops": 1}
    assert {key: listed[key] for key in expected} == expected
    assert (listed["stale"], listed["age_s"]) == (False, None)
    assert datetime.fromisoformat(listed["heard"]).tzinfo is UTC


async def test_boot_gives_connection_data_where_viewers_may(site: Site) -> None:
    """A boot ends with connection data while it runs on a host that lets viewers in."""
    desktop = await site.running("student")
    path = f"/api/v1/desktops/{desktop.id}"
    async with site.as_user("student") as student:
        (boot,) = (await student.get("/api/v1/commands")).json()["items"]
        assert (boot["kind"], boot["outcome"], boot["subject"]) == ("boot_desktop", "VM_CONNECTION_DATA", desktop.id)
        assert (await student.get(path)).json()["connection"] is None, "this host lets nobody in"
        await site.endpoint.host(viewer_port=7100, port=site.console_port)
        found = (await student.get(path)).json()
        assert found["connection"] == {"address": "127.0.0.1", "port": 7100}
        assert (await student.get("/api/v1/desktops")).json()["items"] == [found]
        stopping = replace(desktop, state=DesktopState.STOPPING, until=now() + 60_000)
        await site.endpoint.status.apply(CLUSTER, Rows(desktops=(stopping,)))
        found = (await student.get(path)).json()
        assert found["connection"] is None
        assert datetime.fromisoformat(found["until"]).tzinfo is UTC


async def test_failed_command_has_word_of_specification(site: Site) -> None:
    """A command that failed says so in the specifications word."""
    async with site.as_user("admin") as admin:
        await admin.post(f"{HOST}/boot")
        command = await site.endpoint.next_command()
        shown = (await admin.get(f"/api/v1/commands/{command.id}")).json()
        assert (shown["outcome"], shown["error"]) == (None, None), "not before it has ended"
        await site.endpoint.fail(command, "VM_SERVER_BOOTUP_ERROR", "host-1 has no MAC address to wake it by.")
        shown = (await admin.get(f"/api/v1/commands/{command.id}")).json()
    assert shown["outcome"] == "VM_SERVER_BOOTUP_ERROR"
    assert shown["error"]["reason"] == "host-1 has no MAC address to wake it by."


async def test_a_late_outcome_is_told_in_words(site: Site) -> None:
    async with site.as_user("student") as student:
        await student.post("/api/v1/desktops", json={"image": "tiny"})
        command = await site.endpoint.next_command()
        fault = Fault("TIMED_OUT", "There was no outcome within 120 s.")
        await site.endpoint.commands.advance(command.id, CommandEvent.TIME_OUT, now=now(), fault=fault)
        await site.endpoint.succeed(command)
        shown = (await student.get(f"/api/v1/commands/{command.id}")).json()
    assert (shown["state"], shown["outcome"], shown["late"]) == ("timed_out", "TIMED_OUT", "succeeded")
    assert shown["error"]["reason"] == (
        "There was no outcome within 120 s."
        " A late answer came: the desktop had started after all. It is taken away again."
    )


@pytest.mark.parametrize(
    ("late", "kind", "words"),
    [
        (None, CommandKind.HALT, "Too long."),
        (CommandState.SUCCEEDED, CommandKind.HALT, "Too long. A late answer came: it was done after all."),
        (CommandState.FAILED, CommandKind.DESTROY_DESKTOP, "Too long. A late answer came: it could not be done."),
    ],
)
def test_why_a_command_did_not_succeed(late: CommandState | None, kind: CommandKind, words: str) -> None:
    order: Order = Halt() if kind is CommandKind.HALT else DestroyDesktop("d")
    command = Command("c", "u", order, CommandState.TIMED_OUT, 0, 9, 9, Fault("TIMED_OUT", "Too long."), late)
    assert why(command) == words


async def test_a_cluster_out_of_reach_takes_commands_into_its_queue(site: Site) -> None:
    await site.endpoint.link(False, "the broker does not answer")
    async with site.as_user("student") as student:
        assert (await student.post("/api/v1/desktops", json={"image": "tiny"})).status_code == 202
        shown = (await student.get("/api/v1/status")).json()
    assert (shown["connected"], shown["reason"]) == (False, "the broker does not answer")
    assert datetime.fromisoformat(shown["since"]).tzinfo is UTC


async def test_or_it_refuses_them_where_that_is_set(tmp_path: Path) -> None:
    async with open_site(tmp_path, when_unreachable="refuse") as site:
        await site.endpoint.link(False, "the broker does not answer")
        async with site.as_user("student") as student, site.as_user("admin") as admin:
            for answer in (
                await student.post("/api/v1/desktops", json={"image": "tiny"}),
                await admin.post(f"{HOST}/boot"),
            ):
                detail = problem(answer, 503)
                assert detail.startswith("The cluster is unreachable since ")
                assert "(the broker does not answer)" in detail
                assert int(answer.headers["retry-after"]) > 0
            assert (await student.get("/api/v1/commands")).json()["items"] == []
            await site.endpoint.link(True)
            assert (await student.post("/api/v1/desktops", json={"image": "tiny"})).status_code == 202


async def test_unconfirmed_rows_are_stale_and_say_their_age(tmp_path: Path) -> None:
    """Rows that nobody confirms are stale and say how old they are."""
    async with open_site(tmp_path, status_update_interval=0.05) as site:
        desktop = await site.running("student")
        await site.endpoint.link(False, "gone", ago_ms=60_000)
        await site.endpoint.link(True, ago_ms=60_000)
        async with site.as_user("student") as student, site.as_user("admin") as admin:
            shown = [
                (await student.get(f"/api/v1/desktops/{desktop.id}")).json(),
                (await admin.get(HOST)).json(),
                (await student.get("/api/v1/status")).json(),
            ]
    for thing in shown:
        assert thing["stale"] is True
        assert 55 < thing["age_s"] < 120


def link(connected: bool, heard: int, since: int = 0) -> ClusterLink:
    return ClusterLink(CLUSTER, connected, since, None if connected else "cut", heard)


@pytest.mark.parametrize(
    ("links", "connected", "age_ms", "stale"),
    [
        ([], False, None, True),
        ([link(True, heard=90_000)], True, 10_000, False),
        ([link(True, heard=84_999)], True, 15_001, True),
        ([link(True, heard=0, since=95_000)], True, 5_000, False),
        ([link(False, heard=0, since=95_000)], False, None, True),
        ([link(False, heard=99_000)], False, 1_000, False),
        ([link(True, heard=99_000), link(True, heard=50_000)], True, 50_000, True),
        ([link(True, heard=50_000), link(False, heard=99_000)], False, 1_000, False),
        ([link(True, heard=200_000)], True, 0, False),
    ],
)
def test_the_link_that_is_worst_off_speaks_for_all(
    links: list[ClusterLink], connected: bool, age_ms: int | None, stale: bool
) -> None:
    found = worst(links, now=100_000, stale_after_ms=15_000)
    assert (found.connected, found.age_ms, found.stale) == (connected, age_ms, stale)
    assert found.age_s == (age_ms / 1000 if stale and age_ms is not None else None)
