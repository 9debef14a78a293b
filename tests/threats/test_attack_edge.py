"""The portal's port under attack (faults 22 and 25): memory, time, descriptors. Each test has a running web process."""

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.rigs.attacker import (
    MIB,
    Web,
    answer,
    cost,
    dial,
    is_closed,
    many_descriptors,
    push,
    queued,
    request,
    status,
    web_process,
)
from tests.rigs.rest_client import person
from tests.rigs.stack import Stack

pytestmark = [pytest.mark.attack, pytest.mark.xdist_group("stack")]

FILES = 400
"""Files that the web process may have open: an eighth is kept back, one address may have half of the rest."""
HEAD, BODY, IDLE, STALL = 2, 3, 2, 3


@pytest.fixture(scope="module")
def web(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    log = tmp_path_factory.mktemp("edge") / "web.log"
    times = {"head_timeout": HEAD, "body_timeout": BODY, "idle_timeout": IDLE, "stall_timeout": STALL}
    with web_process(stack.environment, log, files=FILES, **times) as web:
        yield web


@pytest.fixture(scope="module")
def token(stack: Stack) -> Iterator[str]:
    """The student's, by whom event streams are opened."""
    with person(stack.url, "student", stack.password("student")) as student:
        yield student.token


# Memory: what is sent, and what is not read


CHUNKED = b"POST /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /gateway/v1/console/d HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
HEADS = {
    "line": (b"GET /" + b"a" * 60_000, b"a" * 16_384, 414),
    "header": (b"GET / HTTP/1.1\r\nX: ", b"a" * 16_384, 431),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 1000, 431),
    "upgrade": (UPGRADE, b"X: y\r\n" * 1000, 431),
    "trailers": (CHUNKED + b"0\r\n", b"X-Trailer: y\r\n" * 1000, 431),
    "extension": (CHUNKED + b"1;", b"a" * 16_384, 431),
    "chunks": (CHUNKED, b"1\r\nx\r\n" * 1000, 431),
    "blank lines": (b"", b"\r\n" * 8192, 431),
}


@pytest.mark.parametrize("port", ["web", "ops"])
@pytest.mark.parametrize("kind", HEADS)
def test_endless_head_refused_early(web: Web, kind: str, port: str) -> None:
    """An ops port misses its token and may say so before the limit is reached; it ends the connection, too."""
    begin, more, expected = HEADS[kind]
    with dial(web.port if port == "web" else web.ops) as connection:
        connection.sendall(begin)
        push(connection, more, 64 * MIB)
        assert answer(connection) in ({expected} if port == "web" else {expected, 401})
        assert is_closed(connection)


def test_endless_head_costs_little(web: Web) -> None:
    """An endless header takes neither memory nor the others' time."""

    def attack() -> None:
        with dial(web.port) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            push(connection, b"a" * 65_536, 80 * MIB)

    before = sum(web.process.cpu_times()[:2])
    assert cost(web.memory, attack) < 1
    assert sum(web.process.cpu_times()[:2]) - before < 2


def test_unfinished_heads_cost_little(web: Web) -> None:
    """Heads of just under 64 KiB, which wait for their end: at most what was sent, and given back."""
    with ExitStack() as connections:
        before = web.memory()
        for _ in range(100):
            connection = connections.enter_context(dial(web.port))
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 65_000)
        assert status(web.port) == 200
        assert (web.memory() - before) / 100 < MIB / 4


def test_long_cookie_answered(web: Web) -> None:
    """What is within the limit is served, in whatever pieces it comes."""
    with dial(web.port) as connection:
        whole = request(headers={f"Cookie-{n}": "c" * 500 for n in range(100)})
        for at in range(0, len(whole), 5000):
            connection.sendall(whole[at : at + 5000])
        assert answer(connection) == 200


@pytest.mark.parametrize("path", ["/healthz", "/static/app.css", "/api/openapi.json", "/api/v1/events"])
def test_unread_answers_cost_little(web: Web, token: str, path: str) -> None:
    """Requests in a row, and nobody reads an answer: reading stops before memory is taken."""
    whole = request(path, headers={"Authorization": f"Bearer {token}"}) * 300
    sent, kept = [], []

    def attack() -> None:
        with dial(web.port, send_buffer=65_536) as connection:
            sent.append(push(connection, whole, 64 * MIB, patience=0.5))
            kept.append(queued(web.port, connection))

    assert cost(web.memory, attack, times=6) < 1
    assert max(sent) < 32 * MIB
    assert max(kept) < MIB


def test_pipelined_requests_answered_in_order(web: Web) -> None:
    with dial(web.port) as connection:
        connection.sendall(request("/healthz") * 50 + request("/none", headers={"Connection": "close"}))
        got = b""
        while part := connection.recv(65_536):
            got += part
        assert [int(piece[:3]) for piece in got.split(b"HTTP/1.1 ")[1:]] == [200] * 50 + [404]


def test_upgrade_behind_open_answer_refused(web: Web, token: str) -> None:
    """A console in the middle of an event stream would leave its task behind for ever."""
    with dial(web.port) as connection:
        stream = request("/api/v1/events", headers={"Authorization": f"Bearer {token}"})
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        connection.sendall(stream + request("/gateway/v1/console/d", headers=upgrade))
        assert answer(connection) in {200, 400}
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)


def test_unknown_upgrade_answered_then_closed(web: Web) -> None:
    with dial(web.port) as connection:
        connection.sendall(request(headers={"Connection": "Upgrade", "Upgrade": "h2c"}) + request() * 10)
        assert answer(connection) == 200
        assert is_closed(connection)


# Time: what does not come


def test_refusal_has_security_headers(web: Web) -> None:
    """The answer to a request that no application sees has the headers of every other answer."""
    with dial(web.port) as connection:
        connection.sendall(b"no request\r\n\r\n")
        got = b""
        while part := connection.recv(4096):
            got += part
    assert got.startswith(b"HTTP/1.1 400 ")
    for name in (b"content-security-policy: ", b"x-frame-options: DENY", b"x-content-type-options: nosniff"):
        assert got.lower().count(name.lower()) == 1


def test_half_head_answered_408(web: Web) -> None:
    with dial(web.port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        began = time.monotonic()
        assert answer(connection) == 408
        assert time.monotonic() - began > HEAD - 1
        assert is_closed(connection)


def test_dripping_head_buys_no_time(web: Web) -> None:
    """A byte now and then does not keep a connection open, not even behind a whole request."""
    with dial(web.port) as connection:
        connection.sendall(request())
        assert answer(connection) == 200
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < HEAD + 8:
                connection.settimeout(0.2)
                connection.sendall(b"G" if time.monotonic() - began < 0.2 else b"E")
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        break
        assert time.monotonic() - began < HEAD + 7


@pytest.mark.parametrize("path", ["/api/v1/sessions", "/healthz", "/gateway/v1/screenshot/d"])
def test_slow_body_ends_connection(web: Web, path: str) -> None:
    """Also where nobody reads the body, and the answer has been given."""
    with dial(web.port) as connection:
        connection.sendall(request(path, method="POST", headers={"Content-Length": "1000"}) + b"{")
        began = time.monotonic()
        closed = False
        while not closed and time.monotonic() - began < BODY + IDLE + 8:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" ")
            closed = is_closed(connection, within=0.3)
        assert closed


@pytest.mark.parametrize("said", [b"", request()])
def test_idle_connection_closed(web: Web, said: bytes) -> None:
    with dial(web.port) as connection:
        connection.sendall(said)
        assert is_closed(connection, within=max(HEAD, IDLE) + 8)


def test_half_closed_sockets_leave_nothing(web: Web, token: str) -> None:
    """Half a connection ends: before an answer, in the middle of one, and where nobody reads."""
    whole = [
        request(path, headers={"Authorization": f"Bearer {token}"})
        for path in ("/healthz", "/api/openapi.json", "/api/v1/events")
    ]
    with ExitStack() as connections:
        for data in [b"", b"GET", *whole, whole[0] * 50, whole[1] * 60]:
            for _ in range(5):
                connection = connections.enter_context(dial(web.port))
                push(connection, data, len(data), patience=0.1)
                connection.shutdown(socket.SHUT_WR)
        assert status(web.port) == 200  # so that all that came before are accepted
        assert web.connections() > 2
        deadline = time.monotonic() + 25
        while web.connections():
            assert time.monotonic() < deadline, web.connections()


# Descriptors: who keeps whom out


def test_idle_crowd_keeps_nobody_out(web: Web) -> None:
    """More silent connections than descriptors: the oldest give way, and files are kept back."""
    with ExitStack() as connections:
        for _ in range(2 * FILES):
            connections.enter_context(dial(web.port))
        assert status(web.port) == 200
        assert web.says("/readyz") == 200  # the databases have their files
        assert web.says() == 200
        assert web.process.num_fds() < FILES - 16
    assert status(web.port) == 200


def test_busy_crowd_of_one_address_has_an_end(web: Web, token: str) -> None:
    """Streams do not give way: past the limit a caller of the same address is told so, and ops goes on."""
    with ExitStack() as connections:
        streams = []
        for _ in range(FILES // 2 + 40):
            connection = connections.enter_context(dial(web.port))
            connection.sendall(request("/api/v1/events", headers={"Authorization": f"Bearer {token}"}))
            streams.append(answer(connection))
        assert streams.count(200) > FILES // 4
        assert streams[-1] in {0, 503}
        assert status(web.port) in {0, 503}
        assert web.says() == 200
    deadline = time.monotonic() + 10
    while status(web.port) != 200:
        assert time.monotonic() < deadline


def test_ops_crowd_keeps_nobody_out(web: Web) -> None:
    with ExitStack() as connections:
        for _ in range(150):
            connections.enter_context(dial(web.ops))
        assert web.says() == 200
        assert status(web.port) == 200


def test_descriptors_past_1024_served(stack: Stack) -> None:
    """Nothing of ours calls select(), which ends at 1,024; the soft limit is raised to the hard one."""
    web = psutil.Process(stack.pid("web"))
    soft, hard = web.rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard > 2048
    with many_descriptors(), ExitStack() as connections:
        for _ in range(1100):
            connections.enter_context(dial(stack.port))
        deadline = time.monotonic() + 9
        while web.num_fds() < 1100:
            assert time.monotonic() < deadline
        assert stack.ask("web", "/readyz").status_code == 200
