"""The link over a real nats-server: who may say what, what is set aside, and what comes back by itself."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pupitre.config import Settings
from pupitre.errors import MessageError, NoAnswer, Unavailable
from pupitre.pki import issuing
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import (
    MAX_SIZE,
    AnyMessage,
    Done,
    GetPage,
    Heartbeat,
    Refused,
    StatusPosition,
    StatusQuery,
    decode,
)
from pupitre.wire.subjects import Subjects, inbox
from tests.rigs.local_cluster import Broker, eventually, small_settings, wire_link

pytestmark = pytest.mark.anyio
SUBJECTS = Subjects("main")
ROLES = ("endpoint", "cluster", "host-host-1", "host-host-2")
OWN_PUBLISH = {
    "endpoint": {SUBJECTS.commands},
    "cluster": {
        SUBJECTS.commands,
        SUBJECTS.status, SUBJECTS.outcomes, SUBJECTS.all_hosts, SUBJECTS.orders("host-1"), SUBJECTS.orders("host-2"),
    },
    "host-host-1": {SUBJECTS.reports("host-1"), SUBJECTS.heartbeats("host-1")},
    "host-host-2": {SUBJECTS.reports("host-2"), SUBJECTS.heartbeats("host-2")},
}  # fmt: skip
OWN_SUBSCRIBE = {
    "endpoint": {SUBJECTS.status, SUBJECTS.outcomes},
    "cluster": {
        SUBJECTS.commands,
        SUBJECTS.commands,
        *(say(host) for say in (SUBJECTS.reports, SUBJECTS.heartbeats) for host in ("host-1", "host-2")),
    },
    "host-host-1": {SUBJECTS.orders("host-1"), SUBJECTS.all_hosts},
    "host-host-2": {SUBJECTS.orders("host-2"), SUBJECTS.all_hosts},
}
EVERY = sorted(set().union(*OWN_PUBLISH.values(), *OWN_SUBSCRIBE.values()))
WIDE = (">", "*", "pupitre.>", "pupitre.v1.main.host.*.orders", "_INBOX.>", "$SYS.>", "pupitre.v1.other.commands")


@asynccontextmanager
async def broker(home: Path) -> AsyncIterator[tuple[Settings, Broker]]:
    settings = small_settings(home)
    made = Broker(settings, ("host-1", "host-2"))
    await made.start()
    try:
        yield settings, made
    finally:
        await made.kill()


class Peer:
    """A client of this role that tries what our own code would not, and hears what the server says to it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.client = Client()

    async def connect(self, settings: Settings, role: str) -> None:
        async def said(error: Exception) -> None:
            self.errors.append(str(error))

        certificates = issuing.ensure_certificate(settings, role)
        await self.client.connect(
            settings.nats_url,
            tls=issuing.client_context(certificates, role),
            error_cb=said,
            inbox_prefix=inbox(role).encode(),
            max_reconnect_attempts=0,
            allow_reconnect=False,
        )

    async def refused(self, verb: str, foreign: set[str], own: set[str]) -> set[str]:
        """Try all of these subjects; those the server says no to, once it has said so of all the ``foreign`` ones."""
        for subject in sorted(foreign | own):
            if verb == "publish":
                await self.client.publish(subject, b"x")
            else:
                await self.client.subscribe(subject)
        await self.client.flush()

        def named() -> set[str]:
            said = {error.split('"')[1] for error in self.errors if f"violation for {verb}" in error}
            return {subject for subject in foreign | own if subject.lower() in said}  # as the client repeats it

        await eventually(lambda: named() >= foreign)
        return named()


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_has_its_own_subjects_and_no_other(tmp_path: Path, role: str) -> None:
    inboxes = {inbox(other) for other in ROLES if other != role}
    say, hear = OWN_PUBLISH[role], OWN_SUBSCRIBE[role]
    not_to_say = {*EVERY, *(f"{prefix}.abc" for prefix in inboxes), "pupitre.v1.other.commands", "$SYS.x"} - say
    not_to_hear = {*EVERY, *(f"{prefix}.>" for prefix in inboxes), *WIDE} - hear
    async with broker(tmp_path) as (settings, _):
        peer = Peer()
        await peer.connect(settings, role)
        try:
            assert await peer.refused("publish", not_to_say, say) == not_to_say
            assert await peer.refused("subscription", not_to_hear, hear) == not_to_hear
        finally:
            await peer.client.close()


async def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    async with broker(tmp_path) as (settings, _):
        context = ssl.create_default_context(cafile=str(settings.pki_dir / "ca" / "ca.crt"))
        with pytest.raises((ssl.SSLError, OSError, nats.errors.Error)):
            await nats.connect(
                settings.nats_url, tls=context, allow_reconnect=False, connect_timeout=5, error_cb=_quiet
            )


async def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    async with broker(tmp_path) as (settings, _):
        stranger = small_settings(tmp_path / "stranger")
        certificates = issuing.ensure_certificate(stranger, "cluster")
        shutil.copy(settings.pki_dir / "ca" / "ca.crt", certificates / "ca.crt")
        with pytest.raises((ssl.SSLError, OSError, nats.errors.Error)):
            await nats.connect(
                settings.nats_url,
                tls=issuing.client_context(certificates, "cluster"),
                allow_reconnect=False,
                connect_timeout=5,
                error_cb=_quiet,
            )


async def _quiet(_error: Exception) -> None:
    """The refusal itself is raised."""


@pytest.mark.parametrize("in_order", [False, True])
async def test_unreadable_message_is_refused_and_connection_stays(tmp_path: Path, in_order: bool) -> None:
    """What nobody can read is counted set aside and refused and the link lives on."""
    async with broker(tmp_path) as (settings, _):
        registry = CollectorRegistry()

        async def answer(message: AnyMessage) -> AnyMessage:
            if isinstance(message, GetPage):
                raise KeyError("a fault of ours")
            if not isinstance(message, StatusQuery):
                raise MessageError("not here")
            return StatusPosition(epoch=1, sequence=2)

        def aside() -> float | None:
            return registry.get_sample_value("pupitre_messages_set_aside_total", {"subject": SUBJECTS.commands})

        async with (
            wire_link(settings, "cluster", registry=registry) as cluster,
            wire_link(settings, "endpoint") as endpoint,
        ):
            await cluster.serve(SUBJECTS.commands, answer, in_order=in_order)

            async def is_heard() -> bool:
                try:
                    return bool(await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition))
                except NoAnswer:
                    return False

            await eventually(is_heard)
            for garbage in (b"", b"garbage", b"\xff" * 1000, b'{"type":"mark"}', b"[" * 10_000):
                reply = await endpoint._client.request(SUBJECTS.commands, garbage, timeout=5)
                refused = decode(reply.data)
                assert isinstance(refused, Refused)
                assert refused.code == "message_error"
            assert aside() == 5
            with pytest.raises(MessageError, match="not here"):
                await endpoint.request(SUBJECTS.commands, Done(), Done)
            with pytest.raises(NoAnswer, match=r"No answer within 0\.2 s"):
                await endpoint.request(SUBJECTS.commands, GetPage(section="x"), Done, timeout=0.2)
            await eventually(lambda: aside() == 7)
            with pytest.raises(MessageError, match="Asked for Done, got StatusPosition"):
                await endpoint.request(SUBJECTS.commands, StatusQuery(), Done)
            assert await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition) == StatusPosition(
                epoch=1, sequence=2
            )


async def test_nobody_there_and_too_large_and_not_yet(tmp_path: Path) -> None:
    async with broker(tmp_path) as (settings, _), wire_link(settings, "endpoint") as endpoint:
        with pytest.raises(NoAnswer, match="Nobody is there"):
            await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition)
        with pytest.raises(MessageError, match="over the limit"):
            await endpoint.request(SUBJECTS.commands, GetPage(section="x" * MAX_SIZE), StatusPosition)

        async def not_yet(_message: AnyMessage) -> AnyMessage:
            raise Unavailable("the database is away")

        async with wire_link(settings, "cluster") as cluster:
            await cluster.serve(SUBJECTS.commands, not_yet)
            await cluster._client.flush()
            with pytest.raises(NoAnswer, match="No answer"):
                await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition, timeout=0.2)


async def test_messages_of_one_sender_are_handled_in_order(tmp_path: Path) -> None:
    """Messages of one sender are handled in order where it matters."""
    async with broker(tmp_path) as (settings, _):
        heard: list[int] = []
        all_heard = asyncio.Event()

        async def slow_for_even(message: AnyMessage) -> None:
            assert isinstance(message, Heartbeat)
            for _ in range(3 if message.number % 2 == 0 else 0):
                await asyncio.sleep(0)
            heard.append(message.number)
            if len(heard) == 100:
                all_heard.set()

        async with wire_link(settings, "cluster") as cluster, wire_link(settings, "host-host-1") as host:
            await cluster.serve(SUBJECTS.heartbeats("*"), slow_for_even, in_order=True)
            await cluster._client.flush()
            for number in range(100):
                await host.publish(SUBJECTS.heartbeats("host-1"), Heartbeat(host="host-1", run="r", number=number))
            await asyncio.wait_for(all_heard.wait(), 10)
            assert heard == list(range(100))


async def test_connection_returns_after_broker_is_killed(tmp_path: Path) -> None:
    """A broker that is killed and returns finds the link again."""
    async with broker(tmp_path) as (settings, server):
        changes: list[bool] = []
        certificates = issuing.ensure_certificate(settings, "endpoint")
        endpoint = BrokerConnection(
            settings.nats_url,
            "endpoint",
            issuing.client_context(certificates, "endpoint"),
            registry=CollectorRegistry(),
            on_change=changes.append,
        )
        await endpoint.open()

        async def hello(_message: AnyMessage) -> AnyMessage:
            return StatusPosition(epoch=1, sequence=2)

        async with wire_link(settings, "cluster") as cluster:
            await cluster.serve(SUBJECTS.commands, hello)
            for outage in range(1, 3):
                await server.kill()
                await eventually(lambda: not endpoint.connected)
                with pytest.raises(NoAnswer, match="broker is not reached"):
                    await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition)
                await endpoint.publish(SUBJECTS.commands, StatusQuery())  # lost, and nothing worse
                await server.start()

                async def answered() -> bool:
                    try:
                        return bool(await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition))
                    except NoAnswer:
                        return False

                await eventually(answered)
                assert changes == [True, *([False, True] * outage)]
        await endpoint.close()


async def test_a_broker_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    server = Broker(settings, ())
    certificates = issuing.ensure_certificate(settings, "endpoint")
    link = BrokerConnection(
        settings.nats_url, "endpoint", issuing.client_context(certificates, "endpoint"), registry=CollectorRegistry()
    )
    opening = asyncio.create_task(link.open())
    await asyncio.sleep(0)
    assert not link.connected
    await server.start()
    try:
        await asyncio.wait_for(opening, 20)
        assert link.connected
    finally:
        await link.close()
        await server.kill()


async def test_spawned_work_that_fails_fails_alone(tmp_path: Path) -> None:
    async with broker(tmp_path) as (settings, _), wire_link(settings, "endpoint") as link:
        done = asyncio.Event()

        async def fails(error: Exception) -> None:
            raise error

        async def works() -> None:
            done.set()

        link.spawn(fails(Unavailable("away")))
        link.spawn(fails(KeyError("ours")))
        link.spawn(works())
        await asyncio.wait_for(done.wait(), 5)
        assert link.connected, "what fails fails alone"


async def test_a_link_that_the_broker_refuses_says_why(tmp_path: Path) -> None:
    async with broker(tmp_path) as (settings, _):
        stranger = small_settings(tmp_path / "stranger")
        certificates = issuing.ensure_certificate(stranger, "endpoint")
        link = BrokerConnection(
            settings.nats_url,
            "endpoint",
            issuing.client_context(certificates, "endpoint"),
            registry=CollectorRegistry(),
        )
        with capture_logs() as said:
            opening = asyncio.create_task(link.open())
            await eventually(lambda: any("certificate" in str(entry.get("error")).lower() for entry in said))
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        assert {entry["log_level"] for entry in said} == {"warning"}
        await link.close()
