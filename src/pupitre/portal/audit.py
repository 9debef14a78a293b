"""The audit log as the portal writes and searches it.

Commands write their own rows, each in the transaction it tells of; `note` is for all
else: sign-ins, tokens, accounts, consoles. What cannot be noted is not answered: then
the database raises `Unavailable`.
"""

from pupitre.domain.people.access import User
from pupitre.portal.context import Portal
from pupitre.runtime.clock import now_ms
from pupitre.store.audit import NOBODY, Act, AuditEntry

DONE, REFUSED = "done", "refused"


async def note(
    portal: Portal,
    act: Act,
    *,
    user: User | None,
    origin: str,
    subject: str = "",
    outcome: str = DONE,
    detail: str = "",
    name: str = "",
) -> None:
    """Write one row. ``name`` is what somebody without an account called themselves. Never give it a secret."""
    entry = AuditEntry(
        at=now_ms(),
        actor=user.id if user else NOBODY,
        actor_name=user.name if user else name,
        action=act,
        subject=subject,
        origin=origin,
        outcome=outcome,
        detail=detail,
    )
    await portal.audit.add(entry)
