"""A screen closes when the sign-in ends that opened it, however it ends: in a browser and in a native viewer alike."""

import configparser
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.rigs.rest_client import Person, person
from tests.rigs.rfb_viewer import Refused, Viewer
from tests.rigs.stack import Stack

pytestmark = pytest.mark.xdist_group("stack")

CUT = 2.0
"""Seconds within which both have to be closed."""


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Iterator[Person]:
    with person(stack.url, "admin", stack.password("admin")) as someone:
        yield someone


@dataclass
class Account:
    """Someone whose rights end, again and again."""

    url: str
    name: str
    password: str

    def sign_in(self) -> Person:
        return Person(self.url, self.name, self.password)

    @contextmanager
    def browser(self) -> Iterator[httpx2.Client]:
        """Signed in with a cookie."""
        with httpx2.Client(base_url=self.url, headers={"Origin": self.url}, timeout=60) as client:
            answer = client.post("/signin", data={"name": self.name, "password": self.password})
            assert answer.status_code == 303, answer.text
            yield client


def new_account(stack: Stack, admin: Person) -> Account:
    account = Account(stack.url, f"u{secrets.token_hex(4)}", secrets.token_urlsafe(12))
    request = {"name": account.name, "role": "student", "password": account.password}
    answer = admin.http.post("/users", json=request)
    assert answer.status_code == 201, answer.text
    return account


@pytest.fixture(scope="module")
def account(stack: Stack, admin: Person) -> Account:
    return new_account(stack, admin)


@pytest.fixture(scope="module")
def desktop(account: Account) -> Iterator[str]:
    first = account.sign_in()
    yield first.start()
    first.close()
    last = account.sign_in()
    last.stop_all()
    last.close()


@pytest.fixture(scope="module")
def bystander(stack: Stack, admin: Person) -> Iterator[ClientConnection]:
    """Another one's screen, which nothing of this closes."""
    with console(admin, admin.start()) as stream:
        yield stream


@contextmanager
def console(someone: Person, desktop: str) -> Iterator[ClientConnection]:
    """Someone who sees the screen in a browser."""
    url, ticket = someone.ticket(desktop)
    offered = [Subprotocol("binary"), Subprotocol(ticket)]
    with connect(url, subprotocols=offered, compression=None, open_timeout=20, proxy=None) as stream:
        assert bytes(stream.recv(timeout=20, decode=False)).startswith(b"RFB")
        yield stream


def connection(someone: Person, desktop: str) -> dict[str, str]:
    """What the file for remote-viewer says."""
    answer = someone.http.post(f"/desktops/{desktop}/viewer")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-virt-viewer"
    assert answer.headers["cache-control"] == "no-store"
    file = configparser.RawConfigParser()
    file.read_string(answer.text)
    return dict(file["virt-viewer"])


def viewer(stack: Stack, told: dict[str, str]) -> Viewer:
    """Someone who sees the screen in a native viewer. Raises `Refused`."""
    viewer = Viewer(told["host"], int(told["port"]), stack.home / "pki/ca/ca.crt")
    try:
        viewer.authenticate(told["username"], told["password"])
        viewer.screen()
    except BaseException:
        viewer.socket.close()
        raise
    return viewer


@contextmanager
def closing(*readers: Callable[[], None]) -> Iterator[None]:
    """What is done in the block has every reader come to the end of its stream within `CUT` seconds."""
    threads = [threading.Thread(target=reader, daemon=True) for reader in readers]
    for thread in threads:
        thread.start()
    yield
    end = time.monotonic() + CUT
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not [thread for thread in threads if thread.is_alive()], f"not closed within {CUT} s"


def read_out(stream: ClientConnection) -> None:
    try:
        while True:
            stream.recv()
    except ConnectionClosed:
        pass


def sign_out(admin: Person, account: Account, someone: Person) -> None:
    assert someone.http.delete("/sessions/current").status_code == 204


def revoke_token(admin: Person, account: Account, someone: Person) -> None:
    with account.browser() as other:
        digest = hashlib.sha256(someone.token.encode()).hexdigest()
        assert other.post(f"/account/tokens/{digest}/end").status_code == 303


def change_password(admin: Person, account: Account, someone: Person) -> None:
    with account.browser() as other:
        new = secrets.token_urlsafe(12)
        changed = other.post("/account/password", data={"current": account.password, "new": new})
        assert changed.status_code == 303, changed.text
        account.password = new


def change_role(admin: Person, account: Account, someone: Person) -> None:
    assert admin.http.patch(f"/users/{account.name}", json={"role": "teacher"}).status_code == 200


@pytest.mark.parametrize("end", [sign_out, revoke_token, change_password, change_role])
def test_both_screens_close_and_what_was_issued_opens_nothing(
    stack: Stack,
    admin: Person,
    account: Account,
    desktop: str,
    bystander: ClientConnection,
    end: Callable[[Person, Account, Person], None],
) -> None:
    someone = account.sign_in()
    url, unused = someone.ticket(desktop)
    unused_native = connection(someone, desktop)
    with (
        console(someone, desktop) as stream,
        viewer(stack, connection(someone, desktop)) as native,
        closing(lambda: read_out(stream), native.until_cut),
    ):
        end(admin, account, someone)
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(url, subprotocols=[Subprotocol("binary"), Subprotocol(unused)], compression=None, proxy=None),
    ):
        pass
    assert refused.value.response.status_code == 403
    with pytest.raises(Refused, match="sign-in"):
        viewer(stack, unused_native)
    assert someone.http.get("/desktops").status_code == 401
    assert bystander.ping().wait(10)
    someone.close()


def test_sign_in_ended_by_cli_closes_its_screens(stack: Stack, admin: Person, bystander: ClientConnection) -> None:
    """A sign in that ends on the command line closes its screens too."""
    account = new_account(stack, admin)
    someone = account.sign_in()
    desktop = someone.start()
    with (
        console(someone, desktop) as stream,
        viewer(stack, connection(someone, desktop)) as native,
        closing(lambda: read_out(stream), native.until_cut),
    ):
        stack.pupitre("user", "remove", account.name)
    assert bystander.ping().wait(10)
    someone.close()


def test_the_end_of_a_desktop_closes_its_screens(stack: Stack, admin: Person) -> None:
    desktop = admin.start()
    with (
        console(admin, desktop) as stream,
        viewer(stack, connection(admin, desktop)) as native,
        closing(lambda: read_out(stream), native.until_cut),
    ):
        admin.stop(desktop)
    assert admin.http.post(f"/desktops/{desktop}/viewer").status_code == 409
