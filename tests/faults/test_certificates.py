"""Fault 23: certificates expire and the authority is replaced while everything runs, and no open console notices."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from cryptography.x509 import load_pem_x509_certificate
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from pupitre.config import Settings
from pupitre.images.store import ImageStore
from pupitre.net.ops_client import ask
from pupitre.pki import authority, issuing
from pupitre.pki.authority import Rotation
from pupitre.pki.credentials import Credentials
from tests.rigs.local_cluster import eventually
from tests.rigs.rest_client import Person, person
from tests.rigs.stack import Stack

LIFE = 90
"""Seconds of a certificate's life."""
ROLES = ("nats", "endpoint", "cluster", "gateway", "portal", "host-host-1")
PICTURE = 64 * 48 * 4
"""Bytes of the simulated screen."""


@pytest.fixture(scope="module")
def short_lived(tmp_path_factory: pytest.TempPathFactory, images: ImageStore) -> Iterator[Stack]:
    stack = Stack(
        tmp_path_factory.mktemp("certificates") / "home",
        certificate_days=str(LIFE / 86400),
        hypervisor="simulated://prompt",
    ).start()
    yield stack
    stack.stop()


@pytest.fixture
def student(short_lived: Stack) -> Iterator[Person]:
    with person(short_lived.url, "student", short_lived.password("student")) as someone:
        yield someone


class Console:
    """An open console; `look` proves that bytes still pass both ways."""

    def __init__(self, someone: Person, desktop: str) -> None:
        url, ticket = someone.ticket(desktop)
        protocols = [Subprotocol("binary"), Subprotocol(ticket)]
        self._opening = connect(url, subprotocols=protocols, compression=None, open_timeout=20)
        self._read = b""

    def __enter__(self) -> Self:
        self._stream: ClientConnection = self._opening.__enter__()
        for said, answer in ((b"", 12), (b"RFB 003.008\n", 2), (b"\x01", 4), (b"\x01", 20)):
            if said:
                self._stream.send(said)
            self._take(answer)
        self._take(struct.unpack(">I", self._take(4))[0])
        return self

    def look(self) -> None:
        """Ask for the whole screen, and see it come."""
        self._stream.send(struct.pack(">BBHHHH", 3, 0, 0, 0, 64, 48))
        assert len(self._take(16 + PICTURE)) == 16 + PICTURE

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opening.__exit__(kind, error, trace)

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            data = self._stream.recv(timeout=20)
            assert isinstance(data, bytes)
            self._read += data
        taken, self._read = self._read[:size], self._read[size:]
        return taken


def certificates(stack: Stack) -> dict[str, tuple[int, datetime]]:
    """Serial number and end of each role's certificate on disk."""
    found = {}
    for role in ROLES:
        certificate = issuing.load_certificate(stack.home / "pki" / role / f"{role}.crt")
        found[role] = certificate.serial_number, certificate.not_valid_after_utc
    return found


def shown_by_broker(stack: Stack) -> int:
    """The serial number of the certificate that the message broker shows now."""
    document = json.loads((stack.home / "nats.conf").read_text())
    folder = stack.home / "pki" / "endpoint"
    with socket.create_connection(tuple(document["listen"].rsplit(":", 1)), timeout=10) as plain:
        plain.recv(4096)  # what it says before TLS
        with issuing.client_context(folder, "endpoint").wrap_socket(plain, server_hostname="localhost") as secure:
            shown = secure.getpeercert()
            assert shown is not None
            return int(str(shown["serialNumber"]), 16)


def days_left(stack: Stack) -> dict[str, float]:
    """The days left that each process's /metrics tells, by certificate."""
    found: dict[str, float] = {}
    for process in stack.processes().values():
        if process["ops"]:
            text = ask(Path(process["ops"]), "/metrics").text
            told = re.findall(r'^pupitre_certificate_days_left\{certificate="(.+)"\} (\S+)$', text, re.MULTILINE)
            assert told, process["name"]
            found |= {name: float(days) for name, days in told}
    return found


def lives(stack: Stack) -> dict[str, tuple[int, int]]:
    return {name: (entry["pid"], entry["restarts"]) for name, entry in stack.processes().items()}


def test_everything_is_renewed_and_no_console_is_dropped(short_lived: Stack, student: Person) -> None:
    first, before = certificates(short_lived), lives(short_lived)
    desktop = student.start()
    with Console(student, desktop) as console:
        console.look()

        def is_renewed() -> bool:
            console.look()
            now = certificates(short_lived)
            return all(now[role][0] != first[role][0] for role in ROLES) and datetime.now(UTC) > max(
                end for _, end in first.values()
            )

        short_lived.wait_until("every certificate is replaced, and the first ones are over", is_renewed, 4 * LIFE)
        assert lives(short_lived) == before
        short_lived.wait_until(
            "the broker shows its new certificate",
            lambda: shown_by_broker(short_lived) == certificates(short_lived)["nats"][0],
        )
        told = days_left(short_lived)
        assert set(told) == set(ROLES) - {"nats"}
        assert all(0 < days <= LIFE / 86400 for days in told.values())

        with Console(student, desktop) as other:  # gateway and host show each other their new ones
            other.look()
        os.kill(short_lived.pid("nats"), signal.SIGKILL)  # every link is made anew, with what is good now
        short_lived.wait_until("the broker is back", lambda: short_lived.processes()["nats"]["restarts"] == 1)
        console.look()
        student.stop(desktop)


def test_authority_is_rotated_and_no_console_is_dropped(short_lived: Stack, student: Person) -> None:
    settings = Settings(home=short_lived.home)
    desktop = student.start()
    with Console(student, desktop) as console:
        before = lives(short_lived)
        old = issuing.load_certificate(authority.folder(settings) / "ca.crt")
        for step, stands in (
            ("begin", Rotation.BEGUN), ("switch", Rotation.SWITCHED), ("finish", Rotation.NONE)
        ):  # fmt: skip
            short_lived.wait_until(
                f"every process is ready for the step {step}",
                lambda step=step: short_lived.pupitre("pki", "rotate", step, check=False).returncode == 0,
            )
            assert authority.rotation(settings) is stands
            console.look()
            with Console(student, desktop) as other:
                other.look()
        assert lives(short_lived) == before
        for role in ROLES:
            assert old not in authority.load_certificates(settings.pki_dir / role / "ca.crt")
        assert old.subject != issuing.load_certificate(settings.pki_dir / "nats" / "nats.crt").issuer
        short_lived.wait_until("the broker shows the new authority's", lambda: _is_served(short_lived))
        restarts = short_lived.processes()["nats"]["restarts"]
        os.kill(short_lived.pid("nats"), signal.SIGKILL)
        short_lived.wait_until("the broker is back", lambda: short_lived.processes()["nats"]["restarts"] > restarts)
        console.look()
        student.stop(desktop)


def _is_served(stack: Stack) -> bool:
    try:
        return shown_by_broker(stack) == certificates(stack)["nats"][0]
    except ssl.SSLError:
        return False


def test_lost_authority_is_warned_of_until_it_is_back(short_lived: Stack) -> None:
    folder = short_lived.home / "pki" / "ca"
    before = lives(short_lived)

    def warnings() -> set[str]:
        with person(short_lived.url, "admin", short_lived.password("admin")) as admin:
            (host,) = admin.http.get("/hosts").json()["items"]
            return {warning["code"] for warning in host["warnings"]}

    folder.rename(folder.with_name("ca-away"))
    short_lived.wait_until("the host warns", lambda: "certificate_expires" in warnings(), 4 * LIFE)
    assert "pki issue host-host-1" in short_lived.pupitre("host", "list").stdout.replace("\n", " ")
    assert "certificate_expires_soon" in short_lived.log()
    told = json.loads(short_lived.pupitre("doctor", "--json", check=False).stdout)
    assert {each["check"] for each in told["findings"] if not each["well"]} >= {"authority"}
    folder.with_name("ca-away").rename(folder)
    short_lived.wait_until("all is well again", lambda: not warnings(), 4 * LIFE)
    assert lives(short_lived) == before
    assert "Traceback" not in short_lived.log()


def test_web_shows_browsers_a_new_certificate_at_once(tmp_path: Path) -> None:
    """Who renews it writes two files; the next connection sees them, and a pair that does not fit changes nothing."""
    public, key = tmp_path / "web.crt", tmp_path / "web.key"

    def issue(name: str, *, whole: bool = True) -> int:
        own = Settings(home=tmp_path / name, certificate_days=1 / 86400 * LIFE)
        folder = issuing.ensure_certificate(own, "nats")
        if whole:
            key.write_bytes((folder / "nats.key").read_bytes())
        public.write_bytes((folder / "nats.crt").read_bytes())
        return issuing.load_certificate(public).serial_number

    async def follow() -> None:
        credentials = Credentials(Settings(home=tmp_path), CollectorRegistry())
        first = issue("one")
        context = credentials.keep_public(public, key)

        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server, credentials.watching():
            address = server.sockets[0].getsockname()

            async def shown() -> int:
                text = await asyncio.to_thread(ssl.get_server_certificate, address, timeout=10)
                return load_pem_x509_certificate(text.encode()).serial_number

            async def is_shown(serial: int) -> bool:
                return await shown() == serial

            assert await shown() == first
            with capture_logs() as said:
                broken = issue("two", whole=False)
                await eventually(lambda: any(line["event"] == "certificate_unusable" for line in said))
            assert broken != await shown() == first
            third = issue("three")
            await eventually(lambda: is_shown(third))

    asyncio.run(follow())
