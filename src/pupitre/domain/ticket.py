"""A ticket: the portal's signed word that one viewer may see one desktop's screen, once, for a short while.

Form: ``base64url(claims JSON).base64url(Ed25519 signature)``, no padding, so that
it is a token in the sense of RFC 9110 and fits a WebSocket subprotocol. A native
viewer gives it as its password. A browser's is checked by the gateway first; the host
checks every one and burns it, because it is the one place that all ways to a screen share.
"""

import base64
import binascii
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pupitre.errors import RequestError

MAX_LENGTH = 2048
LEEWAY = 30.0
"""Seconds for which a ticket is good after it has expired: the clocks of two machines differ."""


class TicketRefused(RequestError):
    """The ticket is forged, expired, used, or for something else."""

    code = "ticket_refused"


class Purpose(StrEnum):
    CONSOLE = "console"
    VIEWER = "viewer"
    SCREENSHOT = "screenshot"


@dataclass(frozen=True, slots=True)
class Ticket:
    """``expires`` is in Unix seconds. ``boot`` is the desktop's boot generation.

    ``bearer`` is the SHA-256 (hex) of the cookie or token that asked for it;
    ``browser`` says that it was a cookie, which then has to come with the ticket.
    That sign-in ends at Unix second ``until`` at the latest, and with it what the ticket opened.
    """

    id: str
    purpose: Purpose
    user: str
    desktop: str
    boot: int
    host: str
    address: str
    port: int
    expires: float
    bearer: str
    browser: bool
    until: float


def sign(ticket: Ticket, key: Ed25519PrivateKey) -> str:
    claims = msgspec.json.encode(ticket)
    return f"{_encode(claims)}.{_encode(key.sign(claims))}"


def verify(text: str, key: Ed25519PublicKey, *, now: float) -> Ticket:
    """The ticket in ``text``, if ``key`` signed it and it has not expired by `LEEWAY`. Raises `TicketRefused`."""
    if len(text) > MAX_LENGTH:
        raise TicketRefused("The ticket is too long.")
    claims, dot, signature = text.partition(".")
    try:
        if not dot:
            raise TicketRefused("This is not a ticket.")
        body = _decode(claims)
        key.verify(_decode(signature), body)
        ticket = msgspec.json.decode(body, type=Ticket)
    except (binascii.Error, ValueError, InvalidSignature, msgspec.MsgspecError) as error:
        raise TicketRefused("The ticket is not one that this portal signed.") from error
    if now >= ticket.expires + LEEWAY:
        raise TicketRefused("The ticket has expired. Open the console again.")
    return ticket


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
