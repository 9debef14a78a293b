"""The packet that switches a machine on: its bytes, and that it is sent."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.host import parse_mac
from pupitre.errors import Invalid, Unavailable
from pupitre.wire.wake import PACKET_BYTES, magic_packet, wake, woken_by

MAC = "52:54:00:12:34:56"


def test_its_bytes() -> None:
    packet = magic_packet(MAC)
    assert packet[:6] == b"\xff\xff\xff\xff\xff\xff"
    assert packet[6:] == b"\x52\x54\x00\x12\x34\x56" * 16
    assert len(packet) == PACKET_BYTES == 102
    assert woken_by(packet) == MAC


@given(st.binary(max_size=120))
def test_what_is_no_such_packet_wakes_nobody(data: bytes) -> None:
    assert woken_by(data) is None
    assert woken_by(magic_packet(MAC) + b"x" + data) is None


def test_it_is_sent() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        card.bind(("127.0.0.1", 0))
        card.settimeout(10)
        wake(MAC, f"127.0.0.1:{card.getsockname()[1]}")
        assert woken_by(card.recv(1024)) == MAC


def test_an_address_that_takes_nothing_is_named() -> None:
    with pytest.raises(Unavailable, match=r"No packet can be sent to 256\.1\.1\.1:9"):
        wake(MAC, "256.1.1.1:9")


@pytest.mark.parametrize("text", ["52:54:00:12:34:56", "52-54-00-12-34-56", "5254.0012.3456", " 525400123456 "])
def test_every_way_to_write_an_address(text: str) -> None:
    assert parse_mac(text) == MAC


@pytest.mark.parametrize("text", ["", "52:54:00:12:34", "52:54:00:12:34:5g", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
def test_what_is_no_address_of_a_card(text: str) -> None:
    with pytest.raises(Invalid, match="looks like"):
        parse_mac(text)
