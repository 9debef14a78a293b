"""Ports for servers that start later: nobody else comes first."""

import random
import socket

import pytest

from pupitre.errors import SetupError
from pupitre.up.processes import ports


def test_a_port_is_given_to_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_port()
    monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [first, first, first + 1, first + 2, first + 3])
    assert ports.free_port() != first


def test_a_server_listens_there_at_once_and_again_after_it_ended() -> None:
    port = ports.free_port()
    for _ in range(2):
        assert ports.is_free("127.0.0.1", port)
        with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()


def test_outgoing_connections_stay_out_of_the_range() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(64):
            with socket.create_connection(server.getsockname()) as outgoing:
                assert outgoing.getsockname()[1] not in ports.RANGE
                server.accept()[0].close()


def test_a_port_that_is_taken_or_listened_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", ports.free_port())) as server:
        busy, other = server.getsockname()[1], ports.free_port()
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [busy, other])
        with pytest.raises(SetupError, match="no free port"):
            ports.free_port({other})
