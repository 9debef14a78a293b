"""What the cluster settled by itself, on its way to the audit log: sent until the endpoint has written it down."""

import asyncio

import structlog

from pupitre.errors import LinkDown, MessageError
from pupitre.scheduler.state import AuditEvent
from pupitre.store.cluster import ClusterStore
from pupitre.wire.connection import Link
from pupitre.wire.messages import Done, Noted
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)


async def send_notes(store: ClusterStore, link: Link, subjects: Subjects) -> bool:
    """Send the oldest of the notes that wait; True when none waits any more."""

    async def send(note: AuditEvent) -> bool:
        message = Noted(id=note.id, at=note.at, action=note.action, subject=note.subject, detail=note.detail)
        try:
            await link.request(subjects.outcomes, message, Done)
        except LinkDown:
            return False
        except MessageError as error:  # an endpoint of an earlier version; the next one will take it
            log.error("The endpoint refuses a note for the audit log.", note=note.id, reason=str(error))
            return False
        return True

    while waiting := await store.audit_events():
        answers = await asyncio.gather(*(send(note) for note in waiting))
        taken = [note.id for note, answer in zip(waiting, answers, strict=True) if answer]
        if taken:
            await store.forget_audit_events(taken)
        if len(taken) < len(waiting):
            return False
    return True
