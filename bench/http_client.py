"""The least client that can ask a portal over one kept connection, so that what is measured is the portal.

It knows HTTP/1.1 as the portal speaks it: answers with a length, and one endless
answer in chunks for live events. Anything else ends the measurement.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from pupitre.errors import Unavailable


class Client:
    """One person's connection, by bearer token."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._address = (host, port)
        self._head = f"Host: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON."""
        writer = await self._connected()
        data = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if data else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{kind}Content-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        said = await self._reader.readuntil(b"\r\n\r\n")
        length = _header(said, b"content-length")
        answer = await self._reader.readexactly(int(length)) if length else b""
        return int(said[9:12]), json.loads(answer) if answer else None

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """Name and JSON of each live event. Takes the connection for itself."""
        writer = await self._connected()
        writer.write(f"GET /api/v1/events HTTP/1.1\r\n{self._head}Accept: text/event-stream\r\n\r\n".encode())
        said = await self._reader.readuntil(b"\r\n\r\n")
        if said[9:12] != b"200":
            raise Unavailable(f"The portal gives no live events: {said[:60]!r}")
        rest = b""
        while size := int(await self._reader.readline(), 16):
            rest += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
            *whole, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                fields = dict(line.partition(b": ")[::2] for line in event.split(b"\n") if not line.startswith(b":"))
                if b"event" in fields:
                    yield fields[b"event"].decode(), json.loads(fields.get(b"data", b"null"))

    async def close(self) -> None:
        if self._writer:
            self._writer.close()

    async def _connected(self) -> asyncio.StreamWriter:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address, limit=1 << 20)
        return self._writer


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return None
