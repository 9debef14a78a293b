"""Audit events of the cluster, into the audit log: each once, however often it is sent."""

from contextlib import suppress

from pupitre.domain.bounds import DAY_MS
from pupitre.errors import Conflict
from pupitre.runtime.clock import now_ms
from pupitre.store.audit import CLUSTER, AuditEntry, AuditLog
from pupitre.wire.messages import AuditNotice


async def write_audit_event(audit: AuditLog, event: AuditNotice) -> None:
    """It is on disk when this returns; it may be old, and not from the future. Raises `Unavailable`."""
    entry = AuditEntry(
        id=event.id,
        at=min(event.at, now_ms() + DAY_MS),
        actor=CLUSTER,
        actor_name=CLUSTER,
        action=event.action,
        subject=event.subject,
        detail=event.detail,
    )
    with suppress(Conflict):  # it is written already
        await audit.add(entry)
