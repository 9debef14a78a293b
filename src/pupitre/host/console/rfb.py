"""The beginning of RFB 3.8, from both sides, and no more of it: what follows is copied and never read.

To a native viewer the host is a server that takes VeNCrypt's subtype X509Plain alone: TLS
on the same connection, then a name and a password inside it. To the guest it is a client
without a password. Whatever is read is of a fixed size, or of one that `MAX_TEXT` bounds.

Sources: RFC 6143, 7.1; VeNCrypt 0.2 in the community's RFB protocol description, 7.2.5.
"""

import asyncio
import socket
import struct
from typing import Protocol

from pupitre.errors import MessageError

VERSION = b"RFB 003.008\n"
NONE, VENCRYPT = 1, 19
"""Security types."""
VENCRYPT_VERSION = b"\x00\x02"
X509_PLAIN = 262
MAX_TEXT = 2048
"""Bytes of a name or a password."""

_LENGTHS = struct.Struct("!II")
_NUMBER = struct.Struct("!I")


class Source(Protocol):
    """Source of the bytes of a connection."""

    async def read_exactly(self, size: int) -> bytes:
        """Raises `OSError` when the link ends before."""
        ...


class Plain:
    """The part of a viewer's connection before TLS. It takes not one byte more than it is asked for."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def read_exactly(self, size: int) -> bytes:
        loop, parts = asyncio.get_running_loop(), bytearray()
        while len(parts) < size:
            part = await loop.sock_recv(self._connection, size - len(parts))
            if not part:
                raise ConnectionResetError("The viewer closed the connection.")
            parts += part
        return bytes(parts)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)


async def agree_on_tls(viewer: Plain) -> None:
    """Come to the point at which TLS begins. Raises `MessageError` for a viewer that cannot or will not, `OSError`."""
    await viewer.write(VERSION)
    version = await viewer.read_exactly(len(VERSION))
    if not (version.startswith(b"RFB 003.") and version[8:11].isdigit() and version[11:] == b"\n"):
        raise MessageError("The caller speaks no RFB.")
    if int(version[8:11]) < 8:
        await viewer.write(b"\x00" + refusal("This host takes RFB 3.8 with TLS. Use a newer viewer.")[4:])
        raise MessageError(f"The viewer speaks RFB 3.{int(version[8:11])}.")
    await viewer.write(bytes((1, VENCRYPT)))
    if await viewer.read_exactly(1) != bytes((VENCRYPT,)):
        await viewer.write(refusal("This host takes VeNCrypt alone."))
        raise MessageError("The viewer chose a security type that was not offered.")
    await viewer.write(VENCRYPT_VERSION)
    if await viewer.read_exactly(2) != VENCRYPT_VERSION:
        await viewer.write(b"\x01")
        raise MessageError("The viewer speaks another version of VeNCrypt.")
    await viewer.write(b"\x00" + b"\x01" + _NUMBER.pack(X509_PLAIN))
    if await viewer.read_exactly(4) != _NUMBER.pack(X509_PLAIN):
        await viewer.write(b"\x00")
        raise MessageError("The viewer chose a subtype of VeNCrypt that was not offered.")
    await viewer.write(b"\x01")


async def read_credentials(viewer: Source) -> tuple[str, str]:
    """Name and password, inside TLS. Raises `MessageError` and `OSError`."""
    name_size, password_size = _LENGTHS.unpack(await viewer.read_exactly(_LENGTHS.size))
    if max(name_size, password_size) > MAX_TEXT:
        raise MessageError(f"The viewer's name or password is longer than {MAX_TEXT} bytes.")
    text = await viewer.read_exactly(name_size + password_size)
    try:
        return text[:name_size].decode(), text[name_size:].decode()
    except UnicodeDecodeError as error:
        raise MessageError("The viewer's name or password is no text.") from error


ACCEPTED = _NUMBER.pack(0)
"""SecurityResult: come in."""
CLIENT_INIT_SIZE = 1
SHARED = b"\x01"
"""ClientInit of a viewer that leaves the others where they are; a guest drops one that wants them gone."""


def refusal(reason: str) -> bytes:
    """SecurityResult: no, and why."""
    text = reason.encode()
    return _NUMBER.pack(1) + _NUMBER.pack(len(text)) + text


class Guest(Source, Protocol):
    """The guest's side."""

    def send(self, data: bytes) -> None: ...


async def enter_guest(guest: Guest) -> None:
    """Shake hands with the guest's VNC server, up to a viewer's ClientInit. Raises `MessageError` and `OSError`."""
    version = await guest.read_exactly(len(VERSION))
    if version != VERSION:
        raise MessageError("The guest's screen speaks another RFB than 3.8.")
    guest.send(VERSION)
    (count,) = await guest.read_exactly(1)
    if NONE not in await guest.read_exactly(count):
        raise MessageError("The guest's screen asks for a password.")
    guest.send(bytes((NONE,)))
    if await guest.read_exactly(4) != ACCEPTED:
        raise MessageError("The guest's screen let nobody in.")
