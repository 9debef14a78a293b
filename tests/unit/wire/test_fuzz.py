"""Whatever anybody sends, with a certificate or without: each process lives, counts what it set aside, and goes on."""

import asyncio
import contextlib
import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from pupitre.config import Settings
from pupitre.domain.command import BootDesktop, CommandState, ConfigureHost, DestroyDesktop, Order, RegisterHost
from pupitre.errors import MessageError
from pupitre.pki import issuing
from pupitre.wire.messages import Abandon, StatusPosition, StatusQuery, Submit, decode, encode
from pupitre.wire.subjects import Subjects, inbox
from tests import ROOT
from tests.rigs.local_cluster import LocalCluster, eventually, local_cluster
from tests.unit.wire.test_messages import GOLDEN, GROWN, SAMPLES

SUBJECTS = Subjects("main")
NEW = "0190aaaa-0000-7000-8000-0000000000d9"
WAYS = (
    ("endpoint", SUBJECTS.commands),
    ("cluster", SUBJECTS.status),
    ("cluster", SUBJECTS.outcomes),
    ("cluster", SUBJECTS.all_hosts),
    ("cluster", SUBJECTS.orders("host-1")),
    ("host-host-1", SUBJECTS.reports("host-1")),
    ("host-host-1", SUBJECTS.heartbeats("host-1")),
)
"""Who may send where. Behind each way is a handler of one of our processes."""
# What stops or empties a process, because that is what it is for, is no accident.
ORDERLY = {"power_off", "submit-halt", "submit-retire_host", "submit-boot_up_host", "farewell"}
BASES = [msgspec.json.decode(encode(message)) for name, message in (SAMPLES | GROWN).items() if name not in ORDERLY]
TEXTS = ["", " ", "\0", "a b", "a.b", "*", ">", "../../x", "x" * 300, "\r\nPUB x 1", "'", "\u202e", "host-1", "host-2"]
NUMBERS = [0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**70, 1.5]
WILD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*TEXTS, *NUMBERS, None, True, [], {}]), st.text(max_size=20), st.integers(), st.binary().map(str)
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a message there is a value that holds no other."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if isinstance(one, dict | list) and one:
            yield from leaves(one, (*path, key))
        elif key != "type":
            yield (*path, key)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message of ours with something wild in a few places."""
    message = copy.deepcopy(draw(st.sampled_from(BASES)))
    if "host" in message:
        message["host"] = "host-1"
    for path in draw(st.lists(st.sampled_from(list(leaves(message))), max_size=3)):
        inner = message
        for key in path[:-1]:
            inner = inner[key]
        alike: list[Any] = [*TEXTS] if isinstance(inner[path[-1]], str) else [*NUMBERS]
        inner[path[-1]] = draw(st.sampled_from(alike) | WILD)
    return msgspec.json.encode(message)


DATA = st.one_of(mutated(), mutated(), st.binary(max_size=200))
ANY_WAY = st.sampled_from(WAYS) | st.tuples(*(st.sampled_from(sorted(set(part))) for part in zip(*WAYS, strict=True)))
"""Mostly a way that is open to the sender."""


class Peers:
    """A raw client of each role, with its own certificate."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.clients: dict[str, Client] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        for role in sorted({role for role, _ in WAYS}):
            client = Client()
            certificates = issuing.ensure_certificate(self._settings, role)
            await client.connect(
                self._settings.nats_url,
                tls=issuing.client_context(certificates, role),
                inbox_prefix=inbox(role).encode(),
                error_cb=_quiet,
            )
            self.clients[role] = client
            stack.push_async_callback(client.close)

    async def send(self, role: str, subject: str, data: bytes) -> None:
        """Send and wait for the answer, if one comes soon."""
        with contextlib.suppress(nats.errors.Error, TimeoutError):  # no answer is an answer too
            await self.clients[role].request(subject, data, timeout=0.15)


async def _quiet(_error: Exception) -> None:
    """What the broker forbids is not our matter here."""


def _tamed(role: str, data: bytes, epoch: int) -> bytes:
    """A cluster's epoch is its authority: a later one than the real cluster's would depose it, which is no accident."""
    if role == "endpoint":
        return data
    try:
        message = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data
    is_order = isinstance(message, dict) and isinstance(message.get("epoch"), int) and message.get("type") != "mark"
    if is_order and role == "cluster":
        message["epoch"] = epoch
    if isinstance(message, dict):
        message.pop("heard", None)  # a host that says it knows more is set aside, and this room has no other
    return msgspec.json.encode(message)


@dataclass
class Fuzzed:
    """A room under fire."""

    here: LocalCluster
    peers: Peers
    epoch: int

    async def fire(self, shots: list[tuple[tuple[str, str], bytes]]) -> None:
        for (role, subject), data in shots:
            await self.peers.send(role, subject, _tamed(role, data, self.epoch))

    async def lives(self) -> None:
        """Every process still does its work."""

        async def answers() -> bool:
            try:
                answer = await self.peers.clients["endpoint"].request(
                    SUBJECTS.commands, encode(StatusQuery()), timeout=2
                )
            except (nats.errors.Error, TimeoutError):
                return False
            return isinstance(decode(answer.data), StatusPosition)

        await eventually(answers)
        for name in ("cluster", "endpoint"):
            assert self.here.lives(name)
        assert self.here.hosts[0].lives()


def set_aside(registry: CollectorRegistry) -> float:
    text = [sample for family in registry.collect() for sample in family.samples]
    return sum(one.value for one in text if one.name == "pupitre_messages_set_aside_total")


def test_no_message_stops_a_process(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> Fuzzed:
            here = await stack.enter_async_context(local_cluster(tmp_path, host_timeout=30))
            await here.add_host()
            await here.running()
            peers = Peers(here.settings)
            await peers.open(stack)
            answer = await peers.clients["endpoint"].request(SUBJECTS.commands, encode(StatusQuery()), timeout=5)
            mark = decode(answer.data)
            assert isinstance(mark, StatusPosition)
            return Fuzzed(here, peers, mark.epoch)

        async def goes_on(fuzzed: Fuzzed) -> None:
            here = fuzzed.here
            await fuzzed.lives()
            assert all(set_aside(here.ops[name].registry) > 0 for name in ("cluster", "endpoint"))
            assert set_aside(here.hosts[0].registry) > 0
            # A later run of the host is believed over any that was claimed in its name.
            await here.hosts[0].crash()
            await here.hosts[0].start()

            async def starts() -> bool:
                # What a well-formed report claimed in the host's name (no images, say) holds until the host's own next.
                boot = await here.boot()
                ended = await here.command_where(boot, lambda command: command.finished is not None)
                return ended.state is CommandState.SUCCEEDED

            await eventually(starts)

        fuzzed = runner.run(begin())
        try:

            @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
            @given(st.lists(st.tuples(ANY_WAY, DATA), min_size=1, max_size=12))
            def fire(shots: list[tuple[tuple[str, str], bytes]]) -> None:
                runner.run(fuzzed.fire(shots))
                runner.run(fuzzed.lives())

            fire()
            runner.run(goes_on(fuzzed))
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize(
    "order",
    [
        BootDesktop("../../x", "tiny"),
        BootDesktop(NEW, "x" * 300),
        DestroyDesktop("a b"),
        RegisterHost("host-1\r\nPUB x", "127.0.0.1", 1),
        RegisterHost("host-1\n", "127.0.0.1", 1),
        RegisterHost("host-1", "127.0.0.1\0", 1),
        RegisterHost("host-1", "127.0.0.1", 2**40),
        ConfigureHost("host-1", port=-1),
    ],
)
@pytest.mark.parametrize("message", [Submit, Abandon])
def test_order_that_cannot_be_stored_is_refused(message: type[Submit] | type[Abandon], order: Order) -> None:
    """An order that no host subject or database could hold is refused."""
    with pytest.raises(MessageError, match=r"order|name of a host|id of a desktop"):
        decode(encode(message(id=NEW, user="u", order=order, deadline=1)))


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no package for this Python")
@pytest.mark.timeout(120)
def test_atheris_finds_nothing_worse_than_a_refusal(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(GOLDEN / "v1", corpus)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.rigs.fuzz_messages", str(corpus), "-max_total_time=8", "-max_len=4096"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
