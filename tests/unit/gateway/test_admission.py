"""Who may open which screen: every origin, bearer and ticket that must be refused, and the few that must not."""

import base64
import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pupitre.domain.ticket import Purpose, Ticket, TicketRefused, sign
from pupitre.gateway.admission import Admission

KEY = Ed25519PrivateKey.generate()
RULE = Admission(KEY.public_key(), frozenset({"https://lab.example.org", "http://127.0.0.1:8080"}))
NOW = 1_000_000.0
COOKIE = {"cookie": "theme=dark; pupitre_session=mine"}
GOOD = {"origin": "https://lab.example.org", **COOKIE}
TICKET = Ticket(
    id="t1", purpose=Purpose.CONSOLE, user="u1", desktop="d1", boot=1, host="h1", address="127.0.0.1", port=1,
    expires=NOW + 30, bearer=hashlib.sha256(b"mine").hexdigest(), browser=True, until=NOW + 3600,
)  # fmt: skip


def admit(
    ticket: Ticket = TICKET, headers: dict[str, str] | None = None, desktop: str = "d1", now: float = NOW
) -> Ticket:
    return RULE.admit(sign(ticket, KEY), Purpose.CONSOLE, desktop, GOOD if headers is None else headers, now=now)


@pytest.mark.parametrize("origin", ["https://lab.example.org", "http://127.0.0.1:8080"])
def test_our_own_pages_may(origin: str) -> None:
    assert admit(headers={**COOKIE, "origin": origin}) == TICKET


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "https://lab.example.org.evil.example",
        "https://evil-lab.example.org",
        "https://lab.example.org:8443",
        "https://lab.example.org:443",
        "http://lab.example.org",
        "https://lab.example.org/",
        "https://lab.example.org@evil.example",
        "https://LAB.example.org",
        "http://127.0.0.1",
        "http://127.0.0.1:80801",
        "http://localhost:8080",
        "https://lab.example.org https://evil.example",
    ],
)
def test_no_other_page_may_even_with_ticket_and_cookie(origin: str) -> None:
    with pytest.raises(TicketRefused):
        admit(headers={**COOKIE, "origin": origin})
    with pytest.raises(TicketRefused):
        admit(replace(TICKET, browser=False), headers={"origin": origin})


def test_a_browsers_ticket_needs_an_origin() -> None:
    with pytest.raises(TicketRefused, match="origin"):
        admit(headers=COOKIE)


@pytest.mark.parametrize(
    "shown", [{}, {"cookie": "pupitre_session=theirs"}, {"cookie": "other=mine"}, {"authorization": "Bearer theirs"}]
)
def test_a_browsers_ticket_needs_the_session_it_was_issued_to(shown: dict[str, str]) -> None:
    with pytest.raises(TicketRefused, match="someone else"):
        admit(headers={"origin": "https://lab.example.org", **shown})


@pytest.mark.parametrize("shown", [{}, COOKIE, {"authorization": "Bearer mine"}, {"authorization": "bearer  mine"}])
def test_program_ticket_is_enough_without_other_credentials(shown: dict[str, str]) -> None:
    """A programs ticket is enough unless it shows someone else."""
    assert admit(replace(TICKET, browser=False), headers=shown).id == TICKET.id


@pytest.mark.parametrize("shown", [{"cookie": "pupitre_session=theirs"}, {"authorization": "Bearer theirs"}])
def test_a_program_that_shows_someone_else_is_refused(shown: dict[str, str]) -> None:
    with pytest.raises(TicketRefused, match="someone else"):
        admit(replace(TICKET, browser=False), headers=shown)


def test_expired_forged_and_misused_tickets() -> None:
    text = sign(TICKET, KEY)
    claims, _, signature = text.partition(".")
    other = (
        base64.urlsafe_b64encode(base64.urlsafe_b64decode(claims + "==").replace(b'"d1"', b'"d2"'))
        .rstrip(b"=")
        .decode()
    )
    for bad in (
        "", ".", "x", text[:-4], text + "AAAA", claims, f"{other}.{signature}", "é" * 40, "A" * 5000,
        sign(TICKET, Ed25519PrivateKey.generate()),
    ):  # fmt: skip
        for desktop in ("d1", "d2"):
            with pytest.raises(TicketRefused):
                RULE.admit(bad, Purpose.CONSOLE, desktop, GOOD, now=NOW)
    with pytest.raises(TicketRefused, match="expired"):
        admit(now=NOW + 60)
    with pytest.raises(TicketRefused, match="something else"):
        admit(desktop="d2")
    with pytest.raises(TicketRefused, match="something else"):
        admit(replace(TICKET, purpose=Purpose.SCREENSHOT))
