"""Threats 3 and 16: every secret of a whole run, looked for wherever it has no business.

The run says all it can (debug logging), meets refusals and malformed requests, and is
watched meanwhile: command lines and environments of its processes, its output, its
answers to errors, and afterwards every file that it has written.
"""

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from pupitre.images.store import ImageStore
from pupitre.portal.identity.sessions import COOKIE
from tests.rigs.rest_client import Person, emulators, person
from tests.rigs.rfb_viewer import Refused, Viewer
from tests.rigs.stack import Stack
from tests.system.test_sign_ins import connection

pytestmark = pytest.mark.xdist_group("stack")

AMBIENT = "ambient-" + secrets.token_hex(12)
"""A secret that happens to be in the environment `up` was started with."""
MAY_HOLD = {"accounts.json"}
"""Files under home that are there to hold a secret of this test; keys are none of its secrets."""


class Witness:
    """Looks at every command line of the machine, again and again, until it is closed."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            for line in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self._seen.add(line.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    def close(self) -> str:
        self._ended.set()
        self._thread.join()
        return "\n".join(self._seen)


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory, images: ImageStore) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("secrets") / "home", viewer_port="0", log_level="debug")
    stack.environment["SECRET_FOR_NOBODY"] = AMBIENT
    stack.start()
    yield stack
    stack.stop()


def command(stack: Stack, *arguments: str, given: str = "") -> str:
    """What a command of the command line prints; errors too."""
    done = subprocess.run(
        [sys.executable, "-m", "pupitre", *arguments],
        env=stack.environment, input=given, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_no_secret_is_where_it_has_no_business(talkative: Stack) -> None:
    stack = talkative
    known: dict[str, str] = {"the ambient secret": AMBIENT}
    said: dict[str, str] = {}
    for account in json.loads((stack.home / "accounts.json").read_text()):
        known[f"the password of {account['name']}"] = account["password"]
    witness = Witness()
    with person(stack.url, "admin", stack.password("admin")) as admin:
        known["a bearer token"] = admin.token
        _accounts(stack, known, said)
        desktop = admin.start()
        _screens(stack, admin, desktop, known, said)
        _refusals(stack, admin, known, said)
        for process in emulators(desktop):
            said["the emulator's environment"] = json.dumps(process.environ())
        said["the broker's environment"] = json.dumps(psutil.Process(stack.pid("nats")).environ())
        said["the figures"] = "".join(
            stack.ask(name, "/metrics").text for name in ("web", "cluster", "endpoint", "host")
        )
        said["the status"] = command(stack, "status", "--json") + command(stack, "doctor")
        said["the audit log"] = command(stack, "audit", "--json", "--as", "admin")
    said["the process list"] = witness.close()
    said["the log"] = stack.log()
    assert {"the emulator's environment", "the broker's environment"} <= said.keys()

    shown = stack.log()  # `up` tells the demonstration accounts to who starts it, and only at that moment
    for name in ("admin", "teacher", "student"):
        line = f"  {name:<9} {stack.password(name)}"
        assert shown.count(stack.password(name)) == 1, name
        said["the log"] = said["the log"].replace(line.strip(), "")
        said["the log"] = said["the log"].replace(stack.password(name), "")

    for path in stack.home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name not in MAY_HOLD and "overlays" not in path.parts:
            said[f"the file {path.relative_to(stack.home)}"] = path.read_bytes().decode("latin-1")
    found = [
        f"{what} is in {where}" for where, text in said.items() for what, secret in known.items() if secret in text
    ]
    assert len(known) > 12
    assert found == []


def _accounts(stack: Stack, known: dict[str, str], said: dict[str, str]) -> None:
    """Accounts and tokens, over the command line, REST and the pages."""
    name, first, second = f"u{secrets.token_hex(4)}", secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    known |= {"a given password": first, "a changed password": second}
    said["adding a user"] = command(stack, "user", "add", name, "--password-stdin", given=first + "\n")
    said["changing a password"] = command(stack, "user", "password", name, "--password-stdin", given=second + "\n")
    token = command(stack, "user", "token", name).strip()
    known["a token of the command line"] = token
    assert httpx2.get(f"{stack.url}/api/v1/desktops", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    with httpx2.Client(base_url=stack.url, headers={"Origin": stack.url}, timeout=60) as browser:
        answer = browser.post("/signin", data={"name": name, "password": second})
        assert answer.status_code == 303
        known["a cookie"] = browser.cookies[COOKIE]
        third = secrets.token_urlsafe(12)
        known["a password of the page"] = third
        changed = browser.post("/account/password", data={"current": second, "new": third})
        said["the answer to a changed password"] = changed.text


def _screens(stack: Stack, admin: Person, desktop: str, known: dict[str, str], said: dict[str, str]) -> None:
    """Tickets of each kind: used, used again, not used at all."""
    url, ticket = admin.ticket(desktop)
    _, spare = admin.ticket(desktop)
    native = connection(admin, desktop)
    shot = admin.http.get(f"/desktops/{desktop}/screenshot").headers["location"]
    known |= {"a console's ticket": ticket, "an unused ticket": spare, "a viewer's password": native["password"]}
    known |= {"a picture's ticket": shot.partition("ticket=")[2]}
    known |= {f"the signature of {what}": secret.partition(".")[2] for what, secret in known.items() if "." in secret}
    offered = [Subprotocol("binary"), Subprotocol(ticket)]
    with connect(url, subprotocols=offered, compression=None, proxy=None) as stream:
        stream.recv(timeout=20)
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(url, subprotocols=offered, compression=None, proxy=None),
    ):
        pass
    said["the refusal of a used ticket"] = bytes(refused.value.response.body or b"").decode()
    authority = stack.home / "pki/ca/ca.crt"
    with Viewer(native["host"], int(native["port"]), authority) as viewer:
        viewer.authenticate(native["username"], native["password"])
        viewer.screen()
    with Viewer(native["host"], int(native["port"]), authority) as viewer, pytest.raises(Refused) as no:
        viewer.authenticate(native["username"], native["password"])
    said["the refusal of a used password"] = str(no.value)
    assert httpx2.get(f"{stack.url}{shot}").status_code == 200
    said["the refusal of a broken picture"] = httpx2.get(f"{stack.url}{shot}x").text
    file = stack.home.parent / "screen.vv"
    said["the viewer's command"] = command(stack, "desktop", "viewer", desktop, "--output", str(file))
    known["a password in a file"] = file.read_text().partition("password=")[2].partition("\n")[0]
    file.unlink()


def _refusals(stack: Stack, admin: Person, known: dict[str, str], said: dict[str, str]) -> None:
    """What is wrong comes back in words, never as it was sent."""
    wrong = "wrong-" + secrets.token_hex(12)
    known["a wrong password"] = wrong
    api = f"{stack.url}/api/v1"
    with httpx2.Client(timeout=60) as nobody:
        said["a wrong sign-in"] = nobody.post(f"{api}/sessions", json={"name": "admin", "password": wrong}).text
        said["a malformed sign-in"] = nobody.post(
            f"{api}/sessions", json={"name": [wrong], "password": {"a": wrong}}
        ).text
        said["a sign-in of no JSON"] = nobody.post(f"{api}/sessions", content=b'{"password": "' + wrong.encode()).text
        origin = {"Origin": stack.url}
        said["a wrong page"] = nobody.post(
            f"{stack.url}/signin", data={"name": "admin", "password": wrong}, headers=origin
        ).text
        said["a strange token"] = nobody.get(f"{api}/desktops", headers={"Authorization": f"Bearer {wrong}"}).text
        said["a strange scheme"] = nobody.get(f"{api}/desktops", headers={"Authorization": f"Basic {wrong}"}).text
        said["a strange cookie"] = nobody.get(f"{stack.url}/", headers={"Cookie": f"{COOKIE}={wrong}"}).text
        said["a secret in an address"] = nobody.get(f"{stack.url}/gateway/v1/screenshot/x?ticket={wrong}").text
    request = {"name": "x", "role": "nobody", "password": wrong}
    said["a user that cannot be"] = admin.http.post("/users", json=request).text
    with socket.create_connection(("127.0.0.1", stack.port), timeout=20) as caller:
        caller.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {wrong}\r\n\r\n".encode())
        said["a request that is none"] = caller.recv(1 << 16).decode(errors="replace")
