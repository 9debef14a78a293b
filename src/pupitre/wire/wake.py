"""Wake-on-LAN: the packet that switches a machine on, as AMD's white paper 20213 describes it.

Six bytes of ones, then the network card's address sixteen times. It is sent by UDP because that
needs no rights; a card that sleeps looks for the pattern only. Nobody answers it.
"""

import socket

from pupitre.errors import Unavailable

_AWAKEN, _TIMES = b"\xff" * 6, 16
PACKET_BYTES = len(_AWAKEN) + 6 * _TIMES


def magic_packet(mac: str) -> bytes:
    """``mac`` as `pupitre.domain.host.parse_mac` gives it."""
    return _AWAKEN + bytes.fromhex(mac.replace(":", "")) * _TIMES


def woken_by(packet: bytes) -> str | None:
    """The address of the card that ``packet`` wakes; None if it is no such packet."""
    card = packet[6:12]
    return card.hex(":") if packet == _AWAKEN + card * _TIMES and len(card) == 6 else None


def wake(mac: str, address: str) -> None:
    """Send one packet to ``address``, a (broadcast) address and a UDP port. Raises `Unavailable`."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(magic_packet(mac), (host, int(port)))
        except OSError as error:
            raise Unavailable(f"No packet can be sent to {address} to wake {mac}: {error.strerror}.") from error
