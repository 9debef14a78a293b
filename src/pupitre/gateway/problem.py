"""Refusals as RFC 9457 problem documents."""

import json

from pupitre.domain.ticket import TicketRefused
from pupitre.errors import NoAnswer, NotFound, PupitreError
from pupitre.gateway.service import HostRefused

MEDIA_TYPE = "application/problem+json"


def status_of(error: PupitreError) -> int:
    """The HTTP status that says whose fault it is."""
    if isinstance(error, TicketRefused | HostRefused):
        return 403
    if isinstance(error, NotFound):
        return 404
    return 502 if isinstance(error, NoAnswer) else 400


def document(error: PupitreError) -> bytes:
    """The problem document of ``error``. It never quotes the ticket."""
    code = error.error if isinstance(error, HostRefused) else error.code
    return json.dumps(
        {"type": f"urn:pupitre:problem:{code}", "title": code, "status": status_of(error), "detail": error.reason}
    ).encode()
