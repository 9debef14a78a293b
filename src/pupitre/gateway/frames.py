"""WebSocket frames (RFC 6455, section 5) as a stream of bytes; no I/O.

A console is a stream: where one message ends says nothing. So payload is handed
on as it arrives, and no frame, however long it claims to be, is ever assembled.
"""

import struct
from dataclasses import dataclass

from websockets.speedups import apply_mask

BINARY, CLOSE, PING, PONG = 0x2, 0x8, 0x9, 0xA
_CONTINUATION, _TEXT = 0x0, 0x1
SMALL = 1024
"""Bytes of payload up to which pieces are gathered: by itself each of a thousand keystrokes would be an object."""
_HEADER_16 = struct.Struct("!BBH")
_HEADER_64 = struct.Struct("!BBQ")


class ProtocolFault(Exception):
    """The viewer broke RFC 6455; ``code`` is what its close frame must say."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class FrameReader:
    """Frames of a client, in pieces of any size.

    ``ping`` and ``closing`` are payloads for the caller to take. Of many pings the last one is kept: it
    alone has to be answered (5.5.3), so that a flood of them costs nothing. Nothing is read after a close frame.
    """

    ping: bytes | None = None
    closing: bytes | None = None
    controls: int = 0
    """Control frames in what was fed last."""
    _rest: bytes = b""  # a header, or a control frame, of which a part has not come yet
    _left: int = 0  # bytes of the open data frame still to come
    _mask: bytes = b""  # turned so that its first byte is for the next byte
    _in_message: bool = False

    def feed(self, data: bytes) -> list[bytes]:
        """The payload in ``data``, unmasked, in pieces. Raises `ProtocolFault`."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        self.controls = 0
        view = memoryview(data)
        position, end = 0, len(data)
        payload: list[bytes] = []
        small = bytearray()
        while position < end and self.closing is None:
            if self._left:
                size = min(self._left, end - position)
                piece = apply_mask(view[position : position + size], self._mask)
                if size >= SMALL or position + size == end:
                    payload.append(bytes(small) + piece if small else piece)
                    small.clear()
                else:
                    small += piece
                position += size
                self._left -= size
                turn = size & 3
                self._mask = self._mask[turn:] + self._mask[:turn]
            else:
                size = self._open_frame(data, position)
                if not size:
                    self._rest = data[position:]
                    break
                position += size
        if small:
            payload.append(bytes(small))
        return payload

    def _open_frame(self, data: bytes, start: int) -> int:
        """Read the header at ``start``, and the whole of a control frame; 0 when a part is missing."""
        available = len(data) - start
        if available < 2:
            return 0
        first, second = data[start], data[start + 1]
        opcode, final, length = first & 0x0F, first & 0x80, second & 0x7F
        self._check(first, second)
        size = 6 + (2 if length == 126 else 8 if length == 127 else 0)
        if available < size:
            return 0
        if length > 125:
            length = int.from_bytes(data[start + 2 : start + size - 4])
        mask = data[start + size - 4 : start + size]
        if opcode >= CLOSE:
            if available < size + length:
                return 0
            self.controls += 1
            if opcode == PING:
                self.ping = apply_mask(data[start + size : start + size + length], mask)
            elif opcode == CLOSE:
                self.closing = apply_mask(data[start + size : start + size + length], mask)
            return size + length
        self._left, self._mask, self._in_message = length, mask, not final
        return size

    def _check(self, first: int, second: int) -> None:
        opcode, final = first & 0x0F, first & 0x80
        if first & 0x70:
            raise ProtocolFault(1002, "reserved bits are set")
        if not second & 0x80:
            raise ProtocolFault(1002, "the frame is not masked")
        if opcode == _TEXT:
            raise ProtocolFault(1003, "a console speaks binary")
        if opcode in (CLOSE, PING, PONG):
            if not final or second & 0x7F > 125:
                raise ProtocolFault(1002, "a control frame is too long or in parts")
        elif opcode not in (_CONTINUATION, BINARY) or (opcode == _CONTINUATION) is not self._in_message:
            raise ProtocolFault(1002, "the frame's opcode is unexpected")


def header(opcode: int, length: int) -> bytes:
    """The header of a whole frame from server to client."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 1 << 16:
        return _HEADER_16.pack(0x80 | opcode, 126, length)
    return _HEADER_64.pack(0x80 | opcode, 127, length)


def close(code: int, reason: str) -> bytes:
    """A close frame; the reason is cut to the 123 bytes that fit."""
    body = code.to_bytes(2) + reason.encode()[:123].decode(errors="ignore").encode()
    return header(CLOSE, len(body)) + body
