"""The address that a request comes from, also where a reverse proxy passes it on.

A proxy appends the address of its own peer to ``X-Forwarded-For``; whatever stands left
of that was sent by somebody who may write anything. So the line is read from the right,
for as long as a trusted proxy wrote it. uvicorn's reader of the same line takes words
that are no addresses and does not know an IPv4 peer of a socket that serves both
families; nor can it be asked about an upgrade to a WebSocket. ``Forwarded`` (RFC 7239)
is not read at all.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


def parse_network(text: str) -> Network:
    """An address or a network. Raises `ValueError` with a sentence that says what to write."""
    text = text.strip()
    try:
        network = ip_network(text)
    except ValueError:
        try:
            wide = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(
                f"{text[:64]!r} is no address and no network: write addresses as 10.0.0.5, networks as 10.0.0.0/24"
            ) from None
        raise ValueError(f"{text!r} is an address within {wide}: write {wide.network_address}/{wide.prefixlen},"
                         f" or {text.partition('/')[0]} for that address alone") from None  # fmt: skip
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} is every address, and anybody could forge theirs: name the proxies alone")
    return network


def parse_address(text: str) -> Address | None:
    """An address with or without a port, as proxies write it; None for anything else.

    An IPv4 address within IPv6 (``::ffff:10.0.0.5``) is that IPv4 address.
    """
    text = text.strip()
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port.removeprefix(":"))):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(port):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text[:6]) <= 65535


class TrustedProxies:
    """Proxies whose word about a client's address counts."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)

    @property
    def expected(self) -> bool:
        """Whether there is any proxy to trust."""
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether a peer at this address is one of the proxies."""
        parsed = parse_address(address)
        return parsed is not None and self._contains(parsed)

    def client(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """The address of whoever sent the request that ``peer`` brought, with every ``X-Forwarded-For`` line of it.

        The right-most address that is no proxy of ours. A word that is no address ends the line:
        the proxy that passed it on is then all that is known.
        """
        nearest = parse_address(peer)
        if nearest is None:
            return peer
        if not self._contains(nearest):
            return str(nearest)
        for line in reversed(list(forwarded_for)):
            for word in reversed(line.split(",")):
                if not word.strip():
                    continue  # an empty element of a list means nothing (RFC 9110, 5.6.1)
                hop = parse_address(word)
                if hop is None:
                    return str(nearest)
                nearest = hop
                if not self._contains(hop):
                    return str(hop)
        return str(nearest)

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)
