r"""Messages between gateway and host on the host's console port, inside mutual TLS.

::

    gateway → host   {"v": 1, "ticket": "…"}\n                  at most MAX_LINE bytes
    host → gateway   {"ok": true}\n
                 or  {"ok": false, "error": "…", "reason": "…"}\n  and the end
    console          then raw RFB bytes both ways until one side ends
    screenshot       then the PNG's length (4 bytes, big-endian), the PNG, and the end
"""

import struct
from enum import IntEnum

import msgspec

from pupitre.errors import MessageError

VERSION = 1
MAX_LINE = 4096
MAX_PICTURE = 1 << 20
"""Bytes of a picture: it waits as a whole for a browser that does not read it."""
PICTURE_SIZE = struct.Struct("!I")


class CloseCode(IntEnum):
    """Why the gateway closed a viewer's WebSocket; the console page has a sentence for each."""

    ENDED = 4000
    LINK_LOST = 4001
    VIEWER_GONE = 4002
    RESTARTING = 1012


class Hello(msgspec.Struct, frozen=True):
    """The gateway's only line."""

    ticket: str
    v: int = VERSION


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The host's only line. ``error`` is a code of `pupitre.errors`, ``reason`` a sentence."""

    ok: bool
    error: str = ""
    reason: str = ""


def encode(message: Hello | Reply) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_hello(line: bytes) -> Hello:
    """Raises `MessageError`."""
    try:
        hello = msgspec.json.decode(line, type=Hello)
    except msgspec.MsgspecError as error:
        raise MessageError("The first line on the console port is no greeting of a gateway.") from error
    if hello.v != VERSION:
        raise MessageError(f"The gateway speaks version {hello.v} of the console link, this host version {VERSION}.")
    return hello


def decode_reply(line: bytes) -> Reply:
    """Raises `MessageError`."""
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.MsgspecError as error:
        raise MessageError("The host's answer on the console port cannot be read.") from error
