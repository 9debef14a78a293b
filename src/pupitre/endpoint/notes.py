"""What the cluster settled by itself, into the audit log: once, however often it is said."""

from contextlib import suppress

from pupitre.errors import Conflict
from pupitre.store.audit import CLUSTER, AuditEntry, AuditLog
from pupitre.wire.messages import Noted


async def write_note(audit: AuditLog, note: Noted) -> None:
    """It is on disk when this returns. Raises `Unavailable`."""
    entry = AuditEntry(
        id=note.id,
        at=note.at,
        actor=CLUSTER,
        actor_name=CLUSTER,
        action=note.action,
        subject=note.subject,
        detail=note.detail,
    )
    with suppress(Conflict):  # it is written already
        await audit.add(entry)
