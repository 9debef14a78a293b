"""Admission: the gateway's checks of a request for a screen, without I/O.

A ticket alone is not enough in a browser: the page that shows it must come from an
allowed origin, and the session cookie it was issued to must come with it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pupitre.domain import ticket as tickets
from pupitre.domain.ticket import Purpose, Ticket, TicketRefused

SESSION_COOKIE = "pupitre_session"


@dataclass(frozen=True, slots=True)
class Admission:
    """The rule: whose tickets count, and which pages may show them."""

    key: Ed25519PublicKey
    origins: frozenset[str]

    def admit(self, text: str, purpose: Purpose, desktop: str, headers: Mapping[str, str], *, now: float) -> Ticket:
        """The good ticket in ``text``. ``headers`` have small names. Raises `TicketRefused`."""
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            raise TicketRefused("A page of this origin may not open consoles. Set extra_origins to allow it.")
        ticket = tickets.verify(text, self.key, now=now)
        if ticket.purpose is not purpose or ticket.desktop != desktop:
            raise TicketRefused("The ticket is for something else.")
        if ticket.browser and origin is None and purpose is Purpose.CONSOLE:
            raise TicketRefused("The ticket is a browser's, and a browser says its origin.")
        bearers = _bearers(headers)
        if (ticket.browser or bearers) and not any(hmac.compare_digest(bearer, ticket.bearer) for bearer in bearers):
            raise TicketRefused("The ticket was issued to someone else. Open the console again.")
        return ticket


def _bearers(headers: Mapping[str, str]) -> list[str]:
    """Credentials of the request, hashed as in `Ticket.bearer`."""
    shown = []
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == SESSION_COOKIE:
            shown.append(value.strip('"'))
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(token.strip())
    return [hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest() for value in shown]
