"""The screen of a simulated guest: a small picture, as PNG and over RFB 3.8 (RFC 6143).

Enough of the protocol for any real client: no authentication, raw encoding, any true
colour format of 32 bits. Each key press changes the colour, so that a test can see its
own typing come back.
"""

import asyncio
import contextlib
import io
import socket
import struct
import zlib
from dataclasses import dataclass

from PIL import Image

WIDTH, HEIGHT = 64, 48
_VERSION = b"RFB 003.008\n"
_SECURITY_NONE = 1
_BODY = {0: 19, 2: 3, 3: 9, 4: 7, 5: 5, 6: 7}
"""Bytes that follow the type of each client message, less its variable part (RFC 6143, 7.5)."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Layout of 32-bit pixels. RFC 6143, 7.4."""

    big_endian: bool = False
    shifts: tuple[int, int, int] = (16, 8, 0)

    @staticmethod
    def read(data: bytes) -> "PixelFormat":
        """Raises `ValueError` for anything but 32-bit true colour of 8 bits each."""
        bits, _depth, big, true_colour, *maxima, red, green, blue = struct.unpack(">BBBBHHHBBB3x", data)
        if bits != 32 or not true_colour or maxima != [255, 255, 255] or max(red, green, blue) > 24:
            raise ValueError("only 32-bit true colour is spoken here")
        return PixelFormat(bool(big), (red, green, blue))

    def write(self) -> bytes:
        return struct.pack(">BBBBHHHBBB3x", 32, 24, self.big_endian, 1, 255, 255, 255, *self.shifts)

    def pixel(self, colour: tuple[int, int, int]) -> bytes:
        value = sum(part << shift for part, shift in zip(colour, self.shifts, strict=True))
        return struct.pack(">I" if self.big_endian else "<I", value)


class Screen:
    """One guest's screen; any number of viewers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.presses = 0

    @property
    def colour(self) -> tuple[int, int, int]:
        """Never black, and another one after each key press."""
        seed = zlib.crc32(f"{self.name}{self.presses}".encode())
        return 64 + (seed & 127), 64 + (seed >> 8 & 127), 64 + (seed >> 16 & 127)

    def png(self) -> bytes:
        picture = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT), self.colour).save(picture, "PNG")
        return picture.getvalue()

    async def serve(self, end: socket.socket) -> None:
        """Speak RFB on ``end`` until the viewer leaves or says something else."""
        reader, writer = await asyncio.open_connection(sock=end)
        try:
            await self._greet(reader, writer)
            await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass  # the viewer left, or does not speak RFB
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_VERSION)
        if await reader.readexactly(12) != _VERSION:
            raise ValueError("only RFB 3.8 is spoken here")
        writer.write(bytes([1, _SECURITY_NONE]))
        if (await reader.readexactly(1))[0] != _SECURITY_NONE:
            raise ValueError("an unknown security type")
        writer.write(struct.pack(">I", 0))
        await reader.readexactly(1)  # shared or not: always shared
        name = self.name.encode()
        writer.write(struct.pack(">HH", WIDTH, HEIGHT) + PixelFormat().write() + struct.pack(">I", len(name)) + name)
        await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        form = PixelFormat()
        shown: tuple[int, int, int] | None = None
        while True:
            (kind,) = await reader.readexactly(1)
            if kind not in _BODY:
                raise ValueError("an unknown message")
            body = await reader.readexactly(_BODY[kind])
            if kind == 0:
                form = PixelFormat.read(body[3:])
            elif kind == 2:
                await reader.readexactly(4 * struct.unpack(">xH", body)[0])
            elif kind == 3 and (not body[0] or shown != self.colour):
                shown = await self._draw(writer, form)
            elif kind == 4 and body[0]:
                self.presses += 1
                if shown is not None:  # answers the request that waits for a change
                    shown = await self._draw(writer, form)
            elif kind == 6:
                await reader.readexactly(min(struct.unpack(">3xI", body)[0], 1 << 20))

    async def _draw(self, writer: asyncio.StreamWriter, form: PixelFormat) -> tuple[int, int, int]:
        colour = self.colour
        writer.write(struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0) + form.pixel(colour) * (WIDTH * HEIGHT))
        await writer.drain()
        return colour
