"""Origins as browsers write them, and the names under which a server is asked.

A browser's ``Origin`` has a small scheme and host, no default port and nothing after it
(RFC 6454, 6.2). Whatever a person writes is brought into that form, or refused with what
to write instead: an origin that no browser sends would open pages and no console.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from pupitre.domain.peer import parse_address

DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Names whose last label is a number are IPv4 addresses for browsers (URL Standard, 3.5), whatever they look like."""


def parse_origin(text: str) -> str:
    """An origin as browsers send it. Raises `ValueError` with a sentence that says what to write."""
    text = text.strip()
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("an origin has ASCII letters alone: write names with others in their form xn--…")
    scheme, separator, _ = text.partition("://")
    if not separator:
        raise ValueError("an origin begins with its scheme: write https://lab.example.org")
    if scheme.lower() not in DEFAULT_PORTS:
        raise ValueError("an origin begins with https:// or http://: write https://lab.example.org")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # whose words may quote a password
        raise ValueError("this cannot be read as an address: write https://lab.example.org:8443") from None
    if "@" in parts.netloc:
        raise ValueError("an origin has no user and no password: write https://lab.example.org")
    origin = _write(parts.scheme, host_name(parts.hostname or ""), port)
    if parts.path not in {"", "/"} or "?" in text or "#" in text:
        raise ValueError(
            f"an origin ends after host and port, and Pupitre needs a host name of its own: write {origin}"
        )
    return origin


def own_origin(scheme: str, host: str, port: int) -> str:
    """The origin of a server that listens on ``host`` and ``port``. Raises `ValueError` where browsers have none."""
    return _write(scheme, host_name(host), port or None)


def host_name(text: str) -> str:
    """A host in the form in which browsers send it, without brackets.

    Raises `ValueError` with a sentence when no browser can send it.
    """
    text = text.strip().lower()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" not in bare:
        bare = bare.removesuffix(".")
    try:
        address = ip_address(bare)
    except ValueError:
        if _NAME.fullmatch(bare) is None or _NUMERIC.fullmatch(bare) is not None or len(bare) > 253:
            raise ValueError(f"{text[:64]!r} is no host: write a name as lab.example.org, or an address") from None
        return bare
    if address.is_unspecified:
        raise ValueError(f"{text} is every address of this machine, and no browser opens that: name the one it opens")
    if isinstance(address, IPv6Address) and address.scope_id:
        raise ValueError(f"{text} names a network card, which no browser sends: write another address or a name")
    return str(address)


def _write(scheme: str, host: str, port: int | None) -> str:
    if port == 0:
        raise ValueError("port 0 is no port that a browser opens: write the real one")
    suffix = "" if port in {None, DEFAULT_PORTS[scheme]} else f":{port}"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{suffix}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    address = parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


class ServedHosts:
    """Names under which a server may be asked: of its origins, of this machine for itself, and the very address
    that a connection reached. Another site's name, though it may be made to lead here, is none of them.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self.origins = tuple(origins)
        self._names = {urlsplit(origin).hostname for origin in self.origins}

    def refusal(self, lines: list[str], local: str | None) -> tuple[int, str] | None:
        """Status and sentence for a request with these ``Host`` lines that came to ``local``; None: it is served."""
        if len(lines) != 1:
            return 400, "A request names one host. Send one line Host."
        name = self._name(lines[0])
        if name is None:
            return 400, "This is no host. Send the host of the address as it was typed."
        if name in self._names or is_loopback(name) or (local is not None and parse_address(name) is not None
                                                        and parse_address(name) == parse_address(local)):  # fmt: skip
            return None
        return 421, f"This server does not answer for that host. Open {self.origins[0]}."

    def origin_of(self, line: str) -> str:
        """The origin that a browser has opened which sends this ``Host``; the first one where that tells nothing."""
        for origin in self.origins:
            if line.lower() in {urlsplit(origin).netloc, _with_port(origin)}:
                return origin
        return self.origins[0]

    @staticmethod
    def _name(line: str) -> str | None:
        try:
            parts = urlsplit(f"//{line}")
            _ = parts.port
            if parts.netloc != line or "@" in line:
                return None
            return host_name(parts.hostname or "")
        except ValueError:
            return None


def _with_port(origin: str) -> str:
    parts = urlsplit(origin)
    return parts.netloc if parts.port else f"{parts.netloc}:{DEFAULT_PORTS[parts.scheme]}"
