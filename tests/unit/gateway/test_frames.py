"""WebSocket frames cut anywhere give the same bytes; what RFC 6455 forbids is refused."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from pupitre.gateway import frames
from pupitre.gateway.frames import FrameReader, ProtocolFault


def masked(opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 125, 126, 127, 300, 65_535, 65_536]), st.booleans()), max_size=6),
    st.integers(7, 70_000),
)
def test_any_cut_gives_the_same_bytes(messages: list[tuple[int, bool]], step: int) -> None:
    stream, expected, last_ping = b"", b"", None
    for size, ping in messages:
        payload = os.urandom(size)
        half = size // 2
        stream += masked(Opcode.BINARY, payload[:half], fin=False)
        if ping:
            stream += masked(Opcode.PING, payload[:125])
            last_ping = payload[:125]
        stream += masked(Opcode.CONT, payload[half:])
        expected += payload
    reader = FrameReader()
    got = b"".join(part for at in range(0, len(stream), step) for part in reader.feed(stream[at : at + step]))
    assert got == expected
    assert reader.ping == last_ping
    assert reader.closing is None


def test_a_frame_that_claims_to_be_endless_is_not_collected() -> None:
    reader = FrameReader()
    assert reader.feed(b"\x82\xff" + (1 << 62).to_bytes(8) + b"\0\0\0\0") == []
    assert b"".join(reader.feed(b"abc")) == b"abc"


def test_pings_of_one_read_leave_only_the_last() -> None:
    reader = FrameReader()
    stream = b"".join(masked(Opcode.PING, str(number).encode()) for number in range(10_000))
    assert reader.feed(stream + masked(Opcode.PONG, b"x")) == []
    assert reader.ping == b"9999"


def test_nothing_is_read_after_a_close_frame() -> None:
    reader = FrameReader()
    stream = masked(Opcode.CLOSE, b"\x03\xe8") + masked(Opcode.BINARY, b"late") + b"\xff" * 100
    assert reader.feed(stream) == []
    assert reader.feed(stream) == []
    assert reader.closing == b"\x03\xe8"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x01x", 1002),  # not masked
        (b"\xc2\x81\0\0\0\0x", 1002),  # a reserved bit
        (b"\x81\x81\0\0\0\0x", 1003),  # text
        (b"\x83\x81\0\0\0\0x", 1002),  # an unknown opcode
        (b"\x80\x81\0\0\0\0x", 1002),  # a continuation of nothing
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in parts
        (b"\x89\xfe\0\x7e\0\0\0\0", 1002),  # a ping of 126 bytes
        (b"\x02\x81\0\0\0\0x\x82\x81\0\0\0\0x", 1002),  # a message within a message
    ],
)
def test_what_the_rfc_forbids(data: bytes, code: int) -> None:
    with pytest.raises(ProtocolFault) as refusal:
        FrameReader().feed(data)
    assert refusal.value.code == code


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_headers_are_those_of_the_library(size: int) -> None:
    payload = bytes(size)
    assert frames.header(frames.BINARY, size) + payload == Frame(Opcode.BINARY, payload).serialize(mask=False)


def test_a_long_reason_is_cut_between_characters() -> None:
    frame = frames.close(4000, "é" * 100)
    assert len(frame) <= 127
    frame[4:].decode()
