"""A native viewer for tests, of sockets, ssl and struct alone: RFB 3.8 with VeNCrypt's X509Plain."""

import socket
import ssl
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 20.0


class Refused(Exception):
    """The host's SecurityResult was no; the text is its reason."""


class Viewer:
    """Dials at once; `authenticate`, then `screen`. ``authority`` is the certificate it believes in."""

    def __init__(self, address: str, port: int, authority: Path) -> None:
        self._context = ssl.create_default_context(cafile=str(authority))
        self._address = address
        self.socket: socket.socket = socket.create_connection((address, port), timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise ConnectionResetError(f"the host hung up after {data!r}")
            data += part
        return data

    def until_tls(self) -> None:
        """Up to the last byte in the clear."""
        assert self.read(12) == b"RFB 003.008\n"
        self.socket.sendall(b"RFB 003.008\n")
        assert self.read(2) == bytes((1, 19))
        self.socket.sendall(bytes((19,)))
        assert self.read(2) == b"\x00\x02"
        self.socket.sendall(b"\x00\x02")
        assert self.read(6) == b"\x00\x01" + struct.pack("!I", 262)
        self.socket.sendall(struct.pack("!I", 262))
        assert self.read(1) == b"\x01"

    def start_tls(self) -> None:
        """The host's certificate is verified, and the address in it."""
        self.socket = self._context.wrap_socket(self.socket, server_hostname=self._address)

    def authenticate(self, name: str, password: str) -> None:
        """Raises `Refused`."""
        self.until_tls()
        self.start_tls()
        user, secret = name.encode(), password.encode()
        self.socket.sendall(struct.pack("!II", len(user), len(secret)) + user + secret)
        (result,) = struct.unpack("!I", self.read(4))
        if result:
            (size,) = struct.unpack("!I", self.read(4))
            raise Refused(self.read(size).decode())

    def screen(self) -> tuple[int, int, str]:
        """Width, height and name of the desktop, from ServerInit."""
        self.socket.sendall(b"\x00")  # ClientInit, as remote-viewer says it: I want to be alone
        width, height = struct.unpack("!HH", self.read(4))
        self.read(16)
        (size,) = struct.unpack("!I", self.read(4))
        return width, height, self.read(size).decode()

    def first_pixels(self, width: int, height: int) -> bytes:
        """The first part of that corner of the screen that the guest sends, raw."""
        self.socket.sendall(struct.pack("!BxHi", 2, 1, 0))  # SetEncodings: raw alone
        self.socket.sendall(struct.pack("!BBHHHH", 3, 0, 0, 0, width, height))  # FramebufferUpdateRequest
        picture = b""
        while not picture:
            kind, rectangles = struct.unpack("!BxH", self.read(4))
            assert kind == 0
            for _ in range(rectangles):
                _, _, wide, high, encoding = struct.unpack("!HHHHi", self.read(12))
                assert encoding == 0
                picture += self.read(wide * high * 4)
        return picture

    def until_cut(self) -> None:
        """Read on until the host hangs up."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except (ConnectionError, ssl.SSLError):
            pass
