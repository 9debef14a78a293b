"""Health, readiness and figures: what any local user gets of a running instance, and what the owner gets."""

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.net.ops import ensure_token, socket_path
from tests.rigs.stack import Stack

pytestmark = [pytest.mark.attack, pytest.mark.xdist_group("stack")]

PROCESSES = ("cluster", "endpoint", "web", "host")
ROUTES = ("/healthz", "/readyz", "/metrics")


def listening(stack: Stack) -> Iterator[tuple[str, int]]:
    """Every TCP port of every process of the instance."""
    for name, entry in stack.processes().items():
        for process in (own := psutil.Process(entry["pid"]), *own.children(recursive=True)):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr:
                    yield name, connection.laddr.port


def test_local_users_get_no_figures_at_any_port(stack: Stack) -> None:
    """Every TCP port of ours is asked for every ops route, also below the gateway's prefix and NATS's own."""
    ports = set(listening(stack))
    assert {name for name, _ in ports} == {"nats", "web", "host"}, "cluster and endpoint need no port"
    monitor = ("/varz", "/connz", "/subsz", "/jsz", "/gatewayz", "/routez", "/leafz", "/accountz", "/debug/vars")
    paths = [prefix + route for prefix in ("", "/gateway") for route in ROUTES] + list(monitor)
    answered: dict[str, int] = {}
    for name, port in sorted(ports):
        for path in paths:
            for headers in ({}, {"Host": "127.0.0.1"}, {"X-Forwarded-For": "127.0.0.1"}):
                try:
                    answer = httpx2.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=5)
                except httpx2.HTTPError:
                    continue  # TLS, VNC or NATS
                if answer.status_code == 200:
                    answered[path] = port
                    assert answer.text == "ok"
                else:
                    assert answer.status_code in {400, 404, 421}, (name, path)
                    assert "pupitre_" not in answer.text
    assert answered == {"/healthz": stack.port, "/gateway/healthz": stack.port}


def test_ops_sockets_are_their_owners_alone(stack: Stack) -> None:
    processes = stack.processes()
    for name in PROCESSES:
        path = Path(processes[name]["ops"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.geteuid()
        for folder in (path.parent, path.parent.parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stack.ask(name, "/healthz").text == f"{name} is alive\n"
        assert stack.ask(name, "/readyz").text == "ready\n"
        assert "pupitre_ready 1.0" in stack.ask(name, "/metrics").text
        assert stack.ask(name, "/metrics/").status_code == 404
    figures = stack.ask("web", "/metrics").text
    assert "pupitre_consoles_open" in figures
    assert "pupitre_portal_request_seconds" in figures


def test_broker_has_no_monitor_port(stack: Stack) -> None:
    conf = json.loads((stack.home / "nats.conf").read_text())
    assert not {"http", "https", "http_port", "monitor_port", "https_port"} & conf.keys()
    assert len([port for name, port in listening(stack) if name == "nats"]) == 1


def test_status_asks_on_the_sockets(stack: Stack) -> None:
    rows = json.loads(stack.pupitre("status", "--json").stdout)["processes"]
    assert {row["name"]: row["says"] for row in rows if row["name"] in PROCESSES} == dict.fromkeys(PROCESSES, "ready")


def test_collector_needs_the_token_on_the_loopback(tmp_path: Path, images: object) -> None:
    """As in deploy/prometheus.yml: one port for each process, one token for all, in a home with a very long path."""
    home = tmp_path / ("long" * 30) / "home"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        base = probe.getsockname()[1] % 10_000 + 32_000
    stack = Stack(home, ops_port=str(base)).start()
    try:
        path = home / "ops.token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text()
        for number, name in enumerate(PROCESSES):
            with socket.create_connection(("127.0.0.1", base + number)) as connection:
                connection.sendall(b"no request\r\n\r\n")
                assert b"\r\nx-content-type-options: nosniff\r\n" in connection.recv(4096)
            url = f"http://127.0.0.1:{base + number}"
            for route in ROUTES:
                for shown in ({}, {"Authorization": "Bearer none"}, {"Authorization": f"Bearer {token[:-1]}"},
                              {"Authorization": token}, {"X-Forwarded-For": "127.0.0.1"}):  # fmt: skip
                    answer = httpx2.get(f"{url}{route}", headers=shown)
                    assert answer.status_code == 401
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert answer.headers["x-content-type-options"] == "nosniff"
                    assert "pupitre" not in answer.text
                good = httpx2.get(f"{url}{route}", headers={"Authorization": f"Bearer {token}"})
                assert good.status_code == 200
            assert httpx2.get(f"{url}/healthz", headers={"Authorization": f"Bearer {token}"}).text.startswith(name)
            assert stack.ask(name, "/readyz").text == "ready\n"
    finally:
        stack.stop()


def test_sockets_of_killed_processes_are_removed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    own = socket_path(settings, "cluster")
    stale = own.with_name("cluster.4194304.sock")  # beyond the kernel's greatest process id
    stale.touch()
    own.touch()
    assert socket_path(settings, "cluster") == own
    assert [path.name for path in own.parent.iterdir()] == [own.name]


def test_token_is_made_once_and_an_empty_one_refused(tmp_path: Path) -> None:
    token = ensure_token(tmp_path)
    assert len(token) > 40
    assert ensure_token(tmp_path) == token
    assert [path.name for path in tmp_path.iterdir()] == ["ops.token"]
    (tmp_path / "ops.token").write_text("\n")
    with pytest.raises(SetupError, match="Remove it"):
        ensure_token(tmp_path)
