"""The whole program through REST and WebSocket, with nothing mocked: portal to QEMU and back."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import psutil
import pytest
import uuid_utils
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from pupitre.domain import ticket as tickets
from pupitre.domain.ticket import Ticket
from pupitre.pki import issuing
from tests.rigs.rest_client import Person, Serial, emulators, overlay, person
from tests.rigs.stack import Stack

pytestmark = pytest.mark.xdist_group("stack")


@pytest.fixture
def teacher(stack: Stack) -> Iterator[Person]:
    with person(stack.url, "teacher", stack.password("teacher")) as someone:
        yield someone


@pytest.fixture
def student(stack: Stack) -> Iterator[Person]:
    with person(stack.url, "student", stack.password("student")) as someone:
        yield someone


def console(stack: Stack, url: str, ticket: str, **headers: str) -> ClientConnection:
    return connect(
        url,
        subprotocols=[Subprotocol("binary"), Subprotocol(ticket)],
        additional_headers=headers or None,
        compression=None,
        open_timeout=20,
    )


def refused(stack: Stack, url: str, ticket: str, **headers: str) -> int:
    """The status with which the handshake was refused; a handshake that succeeds fails the test."""
    with pytest.raises(InvalidStatus) as refusal, console(stack, url, ticket, **headers):
        pass
    assert b"RFB" not in refusal.value.response.body
    return refusal.value.response.status_code


def test_a_desktop_from_start_to_stop(stack: Stack, teacher: Person) -> None:
    answer = teacher.order("POST", "/desktops", json={"image": "tiny"})
    desktop = answer["desktop"]
    assert teacher.http.get(f"/desktops/{desktop}").json()["state"] in {"requested", "preparing", "booting", "running"}
    ended = teacher.outcome(answer["command"])
    assert (ended["state"], ended["error"]) == ("succeeded", None)

    seen = teacher.http.get(f"/desktops/{desktop}").json()
    assert (seen["state"], seen["image"], seen["host"]) == ("running", "tiny", "host-1")
    assert overlay(stack.home, desktop).exists()
    (emulator,) = emulators(desktop)
    assert not [c for c in emulator.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]

    with Serial(stack.home, desktop) as line:
        line.wait_for_shell()
        line.say("echo answer-$((6*7))\n")
        line.hear("answer-42")

    url, ticket = teacher.ticket(desktop)
    with console(stack, url, ticket) as stream:
        assert stream.subprotocol == "binary"
        assert stream.recv(timeout=20, decode=False).startswith(b"RFB 003.008\n")

    picture = teacher.http.get(f"/desktops/{desktop}/screenshot", follow_redirects=True)
    assert picture.status_code == 200
    assert picture.content.startswith(b"\x89PNG")

    teacher.stop(desktop)
    assert not overlay(stack.home, desktop).exists()
    assert not emulator.is_running()
    assert desktop not in [item["id"] for item in teacher.http.get("/desktops").json()["items"]]


def test_nobody_reaches_another_ones_desktop(stack: Stack, teacher: Person, student: Person) -> None:
    answer = teacher.order("POST", "/desktops", json={"image": "tiny"})
    teacher.outcome(answer["command"])
    desktop, nothing = answer["desktop"], str(uuid_utils.uuid7())
    for method, path in (
        ("GET", "/desktops/{}"),
        ("POST", "/desktops/{}/console"),
        ("GET", "/desktops/{}/screenshot"),
        ("DELETE", "/desktops/{}"),
    ):
        theirs = student.http.request(method, path.format(desktop))
        absent = student.http.request(method, path.format(nothing))
        assert theirs.status_code == absent.status_code == 404, (method, path)
        assert theirs.text.replace(desktop, nothing) == absent.text
    assert student.http.get(f"/commands/{answer['command']}").status_code == 404
    assert desktop not in student.http.get("/desktops").text
    assert emulators(desktop)


def test_a_ticket_opens_once_and_for_its_user(stack: Stack, teacher: Person, student: Person) -> None:
    desktop = teacher.start()
    url, ticket = teacher.ticket(desktop)
    with console(stack, url, ticket) as stream:
        assert stream.recv(timeout=20, decode=False).startswith(b"RFB")
    assert refused(stack, url, ticket) == 403

    _, fresh = teacher.ticket(desktop)
    forged = fresh[:-8] + ("A" * 8 if not fresh.endswith("A" * 8) else "B" * 8)
    assert refused(stack, url, forged) == 403
    assert refused(stack, url, fresh, Authorization=f"Bearer {student.token}") == 403
    assert refused(stack, url, fresh, Origin="http://evil.example") == 403

    signer = issuing.load_ticket_signer(stack.home / "pki/portal")
    claims = tickets.verify(fresh, signer.public_key(), now=time.time())
    expired = tickets.sign(_with(claims, id="expired", expires=time.time() - 31), signer)
    assert refused(stack, url, expired) == 403
    elsewhere = tickets.sign(_with(claims, id="elsewhere", desktop=str(uuid_utils.uuid7())), signer)
    assert refused(stack, url, elsewhere) == 403
    earlier = tickets.sign(_with(claims, id="earlier", boot=claims.boot - 1), signer)
    assert refused(stack, url, earlier) in {403, 404, 409}

    with console(stack, url, fresh) as stream:
        assert stream.recv(timeout=20, decode=False).startswith(b"RFB")


def _with(ticket: Ticket, **changes: Any) -> Ticket:
    return dataclasses.replace(ticket, **changes)


def test_no_ticket_is_logged(stack: Stack, teacher: Person) -> None:
    desktop = teacher.start()
    url, ticket = teacher.ticket(desktop)
    with console(stack, url, ticket) as stream:
        stream.recv(timeout=20)
    assert refused(stack, url, ticket) == 403
    shot = teacher.http.get(f"/desktops/{desktop}/screenshot").headers["location"]
    assert httpx2.get(f"{stack.url}{shot}").status_code == 200
    log = stack.log()
    for secret in (ticket, ticket.split(".")[1], shot.split("ticket=")[1], teacher.token):
        assert secret not in log


def test_bad_input_is_answered_with_the_mend_and_changes_nothing(stack: Stack, student: Person) -> None:
    http = student.http
    before = len(http.get("/commands").json()["items"])

    unknown = http.post("/desktops", json={"image": "no-such-image"})
    assert unknown.status_code in {404, 422}
    assert unknown.headers["content-type"] == "application/problem+json"
    assert "tiny" in unknown.json()["detail"]

    malformed = http.post("/desktops", content=b"{", headers={"content-type": "application/json"})
    assert malformed.status_code in {400, 422}
    assert malformed.json()["detail"]

    huge = http.post("/desktops", content=b'"' + b"x" * 10_000_000 + b'"', headers={"content-type": "application/json"})
    assert huge.status_code == 413

    assert http.delete(f"/desktops/{uuid_utils.uuid7()}").status_code == 404
    assert len(http.get("/commands").json()["items"]) == before

    student.start()
    second = http.post("/desktops", json={"image": "tiny"})
    while second.status_code == 429:
        second = http.post("/desktops", json={"image": "tiny"})
    assert second.status_code == 409, second.text
    assert second.json()["code"] == "limit_reached"
    assert "Stop" in second.json()["detail"]
    assert len(http.get("/desktops").json()["items"]) == 1


def test_what_ends_inside_ends_outside(stack: Stack, teacher: Person) -> None:
    """`poweroff` in the guest; a killed emulator; both are seen at once, and the next start works."""
    desktop = teacher.start()
    with Serial(stack.home, desktop) as line:
        line.wait_for_shell()
        line.say("poweroff\n")
        teacher.desktop_in(desktop, "gone")
    assert not overlay(stack.home, desktop).exists()

    desktop = teacher.start()
    (emulator,) = emulators(desktop)
    emulator.kill()
    failed = teacher.desktop_in(desktop, "failed")
    assert failed["reason"]
    teacher.stop(desktop)
    assert not overlay(stack.home, desktop).exists()

    teacher.stop(teacher.start())
