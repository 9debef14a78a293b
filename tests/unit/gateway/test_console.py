"""The console path with nothing replaced: viewer, gateway process, mutual TLS, console server, guest."""

import asyncio
import contextlib
import hashlib
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import psutil
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pupitre.domain import console_link
from pupitre.domain.console_link import CloseCode
from pupitre.domain.ticket import Purpose, sign
from pupitre.net.ops_client import ask
from pupitre.pki import issuing
from tests.rigs.console_rig import BEARER, GREETING, ORIGIN, PICTURE, Rig, console_rig

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with console_rig(tmp_path) as made:
        yield made


async def refusal(viewer: websockets.connect) -> int:
    """The HTTP status of a refused upgrade; that it is refused is the point."""
    with pytest.raises(websockets.InvalidStatus) as answer:
        async with viewer:
            pass
    assert GREETING not in bytes(answer.value.response.body or b"")
    return answer.value.response.status_code


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Drop a connection without ceremony."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_console_carries_bytes_both_ways_and_says_why_it_ends(rig: Rig) -> None:
    async with rig.connect(rig.sign(rig.ticket())) as viewer:
        assert viewer.subprotocol == "binary"
        assert await viewer.recv() == GREETING
        sent = b"0123456789" * 60_000
        await viewer.send(sent)
        got = b""
        while len(got) < len(sent):
            part = await viewer.recv()
            assert isinstance(part, bytes)
            got += part
        assert got == sent
        assert await (await viewer.ping())
        rig.guests.streams[-1].close()
        await viewer.wait_closed()
        assert viewer.close_code == CloseCode.ENDED
        assert viewer.close_reason
    await rig.guests.until_left()


async def test_a_viewer_that_leaves_frees_the_guests_socket(rig: Rig) -> None:
    viewer = await rig.connect(rig.sign(rig.ticket()))
    await viewer.recv()
    await viewer.close()
    await rig.guests.until_left()
    assert rig.server.consoles == 0


@pytest.mark.parametrize(
    "origin",
    ["http://evil.test", "null", None, ORIGIN + ".evil.test", "http://desk.test", "http://desk.test:8081",
     "https://desk.test:8080", ORIGIN + "/"],
)  # fmt: skip
async def test_other_origins_get_no_byte(rig: Rig, origin: str | None) -> None:
    assert await refusal(rig.connect(rig.sign(rig.ticket()), origin=origin)) == 403
    assert rig.guests.opened == []


async def test_tickets_that_are_not_good_get_no_byte_and_open_nothing(rig: Rig) -> None:
    stranger = Ed25519PrivateKey.generate()
    theirs = hashlib.sha256(b"another session").hexdigest()
    expired = rig.ticket()
    for text in (
        sign(rig.ticket(), stranger),
        rig.sign(rig.ticket(expires=expired.expires - 61)),
        rig.sign(rig.ticket(bearer=theirs)),
        rig.sign(rig.ticket(desktop="d2")),
        rig.sign(rig.ticket(boot=6)),
        rig.sign(rig.ticket(purpose=Purpose.SCREENSHOT)),
        rig.sign(rig.ticket(expires=expired.expires + 3600)),
        "no-ticket",
    ):
        assert await refusal(rig.connect(text)) == 403
    assert await refusal(rig.connect(rig.sign(rig.ticket()), headers={})) == 403
    assert rig.guests.opened == []
    wrong_host = rig.sign(rig.ticket(host="h2"))
    assert await refusal(rig.connect(wrong_host)) == 502  # the name in the certificate differs
    assert rig.guests.opened == []


async def test_ticket_opens_one_console_even_after_restart(rig: Rig) -> None:
    """A ticket opens one console even at the same moment and after a restart."""
    text = rig.sign(rig.ticket())

    async def attempt() -> bool:
        try:
            async with rig.connect(text) as viewer:
                return await viewer.recv() == GREETING
        except websockets.InvalidStatus:
            return False

    assert sum(await asyncio.gather(*(attempt() for _ in range(8)))) == 1
    await rig.restart_server()
    late = rig.sign(rig.ticket())
    assert await refusal(rig.connect(text)) in (403, 502)
    assert len(rig.guests.opened) == 1
    async with rig.connect(late) as viewer:
        assert await viewer.recv() == GREETING


async def test_one_desktop_has_at_most_four_consoles(rig: Rig) -> None:
    held = [await rig.connect(rig.sign(rig.ticket())) for _ in range(4)]
    assert await refusal(rig.connect(rig.sign(rig.ticket()))) == 403
    other = await rig.connect(rig.sign(rig.ticket(desktop="d2")), desktop="d2")
    for viewer in [*held, other]:
        await viewer.close()


async def test_viewer_that_does_not_read_costs_little(rig: Rig) -> None:
    """A viewer that does not read costs little and delays nobody."""
    process = psutil.Process(rig.gateway.pid)
    async with rig.connect(rig.sign(rig.ticket())) as lively, contextlib.AsyncExitStack() as lazy:
        await lively.recv()

        async def median_echo() -> float:
            times = []
            for _ in range(300):
                begin = time.perf_counter()
                await lively.send(b"x")
                await lively.recv()
                times.append(time.perf_counter() - begin)
            return statistics.median(times)

        async def add_lazy_viewers(count: int) -> None:
            for number in range(len(rig.guests.opened), len(rig.guests.opened) + count):
                _, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
                lazy.push_async_callback(hang_up, writer)
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                desktop = f"flood-{number}"
                writer.write(rig.upgrade(rig.sign(rig.ticket(desktop=desktop)), desktop))
                await rig.guests.until_opened(number + 1)

        await add_lazy_viewers(4)  # the first ones make room that all share
        assert await median_echo() < 0.05
        before = process.memory_info().rss
        await add_lazy_viewers(16)
        assert await median_echo() < 0.05
        assert (process.memory_info().rss - before) / 16 < 1_000_000


async def test_a_protocol_fault_closes_the_console_with_its_code(rig: Rig) -> None:
    async with rig.connect(rig.sign(rig.ticket())) as viewer:
        await viewer.recv()
        await viewer.send("text is not RFB")
        await viewer.wait_closed()
        assert viewer.close_code == 1003
    await rig.guests.until_left()


async def test_a_host_that_is_gone_is_said(rig: Rig) -> None:
    text = rig.sign(rig.ticket())
    await rig.server.stop()
    assert await refusal(rig.connect(text)) == 502


async def test_a_restarting_gateway_tells_the_page_to_come_back(rig: Rig) -> None:
    async with rig.connect(rig.sign(rig.ticket())) as viewer:
        await viewer.recv()
        rig.gateway.terminate()
        await viewer.wait_closed()
        assert viewer.close_code == CloseCode.RESTARTING
    await rig.guests.until_left()
    assert await asyncio.to_thread(rig.gateway.wait, 20) is not None


async def test_pictures_come_from_the_host_and_only_with_a_ticket(rig: Rig) -> None:
    ticket = rig.ticket(purpose=Purpose.SCREENSHOT)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{rig.port}", trust_env=False) as browser:
        cookie = {"Cookie": "pupitre_session=a-session-cookie"}
        for _ in range(2):  # a picture's ticket may be shown again
            answer = await browser.get("/gateway/v1/screenshot/d1", params={"ticket": rig.sign(ticket)}, headers=cookie)
            assert (answer.status_code, answer.content) == (200, PICTURE)
            assert answer.headers["cache-control"].startswith("private, max-age=")
        for text, headers in (
            (rig.sign(ticket), {}),
            (rig.sign(rig.ticket()), cookie),
            (rig.sign(rig.ticket(purpose=Purpose.SCREENSHOT, desktop="d2")), cookie),
            ("", cookie),
        ):
            answer = await browser.get("/gateway/v1/screenshot/d1", params={"ticket": text}, headers=headers)
            assert answer.status_code == 403
            assert answer.headers["content-type"] == "application/problem+json"
        for path in ("/healthz", "/gateway/healthz"):
            assert (await browser.get(path)).text == "ok"
        for path in ("/readyz", "/metrics", "/gateway/readyz", "/gateway/metrics"):
            assert (await browser.get(path)).status_code == 404
    (own,) = (rig.settings.run_dir / "ops").glob("gateway.*.sock")
    assert "pupitre_consoles_open" in ask(own, "/metrics").text
    assert ask(own, "/readyz").text == "ready\n"


async def test_no_log_holds_a_ticket_or_a_cookie(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    shown = [rig.sign(rig.ticket()), rig.sign(rig.ticket(boot=1)), rig.sign(rig.ticket(purpose=Purpose.SCREENSHOT))]
    async with rig.connect(shown[0]) as viewer:
        await viewer.recv()
    for text in shown[:2]:
        await refusal(rig.connect(text))
    async with httpx2.AsyncClient(trust_env=False) as browser:
        await browser.get(f"http://127.0.0.1:{rig.port}/gateway/v1/screenshot/d1", params={"ticket": shown[2]})
    written = rig.log.read_text() + caplog.text
    assert "console_refused" in written
    assert not [text for text in shown if text in written or text.split(".")[1] in written]
    assert "a-session-cookie" not in written
    assert BEARER not in written


async def test_only_the_gateways_certificate_opens_the_console_port(rig: Rig) -> None:
    text = rig.sign(rig.ticket())
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.load_verify_locations(rig.settings.pki_dir / "ca" / "ca.crt")
    for context in (
        anonymous,
        issuing.client_context(issuing.directory(rig.settings, "endpoint"), "endpoint"),
        issuing.client_context(issuing.directory(rig.settings, "host-h1"), "host-h1"),
    ):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", rig.server.port, ssl=context, server_hostname=issuing.host_dns_name("h1")
            )
            writer.write(console_link.encode(console_link.Hello(ticket=text)))
            assert await reader.read(100) == b""
            await hang_up(writer)
        except OSError:
            pass
    assert rig.guests.opened == []


async def test_the_gateway_speaks_to_no_host_with_a_wrong_certificate(rig: Rig) -> None:
    endpoint = issuing.directory(rig.settings, "endpoint")
    heard: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0, ssl=issuing.server_context(endpoint, "endpoint"))
    port = server.sockets[0].getsockname()[1]
    assert await refusal(rig.connect(rig.sign(rig.ticket(port=port)))) == 502
    server.close()
    assert [data for data in heard if data] == []


async def test_half_open_connections_keep_no_gateway_out(rig: Rig) -> None:
    """Garbage and half open connections do not keep the gateway out."""
    floods = [await asyncio.open_connection("127.0.0.1", rig.server.port) for _ in range(300)]
    for number, (_, writer) in enumerate(floods):
        if number % 3 == 0:
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        elif number % 3 == 1:
            writer.write(b"\x16\x03\x01\x02\x00\x01")  # a TLS greeting that does not go on
    async with asyncio.timeout(10):
        async with rig.connect(rig.sign(rig.ticket())) as viewer:
            assert await viewer.recv() == GREETING
    for _, writer in floods:
        await hang_up(writer)


@pytest.mark.parametrize(
    "greeting", [b"\n", b"{}\n", b"x" * 5000, b'{"v": 2, "ticket": "x"}\n', b"\xff\xfe\n", b"nothing"]
)
async def test_a_gateway_that_talks_nonsense_gets_nothing(rig: Rig, greeting: bytes) -> None:
    context = issuing.client_context(issuing.directory(rig.settings, "gateway"), "gateway")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", rig.server.port, ssl=context, server_hostname=issuing.host_dns_name("h1")
    )
    writer.write(greeting)
    try:
        async with asyncio.timeout(10):
            assert GREETING not in await reader.read()
    except OSError:
        pass
    await hang_up(writer)
    assert rig.guests.opened == []


async def test_a_clock_40_s_ahead_opens_a_console_once(rig: Rig) -> None:
    """A portal's ticket is good for 30 s; to a machine whose clock is 40 s ahead it has expired when it is made."""
    late = rig.sign(rig.ticket(expires=time.time() + 30 - 40))
    async with rig.connect(late) as viewer:
        await viewer.recv()
    assert await refusal(rig.connect(late)) == 403
