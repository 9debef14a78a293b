"""What the cluster settled by itself, into the audit log: once, however often it is said."""

from contextlib import suppress

from pupitre.domain.bounds import DAY_MS
from pupitre.errors import Conflict
from pupitre.runtime.clock import now_ms
from pupitre.store.audit import CLUSTER, AuditEntry, AuditLog
from pupitre.wire.messages import Noted


async def write_note(audit: AuditLog, note: Noted) -> None:
    """It is on disk when this returns; it may be old, and not from the future. Raises `Unavailable`."""
    entry = AuditEntry(
        id=note.id,
        at=min(note.at, now_ms() + DAY_MS),
        actor=CLUSTER,
        actor_name=CLUSTER,
        action=note.action,
        subject=note.subject,
        detail=note.detail,
    )
    with suppress(Conflict):  # it is written already
        await audit.add(entry)
