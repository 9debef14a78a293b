"""Audit events of the cluster on their way to the audit log: sent until the endpoint has written them."""

import asyncio

import structlog

from pupitre.errors import MessageError, NoAnswer
from pupitre.scheduler.state import AuditEvent
from pupitre.store.cluster import ClusterStore
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import AuditNotice, Done
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)


async def send_audit_events(store: ClusterStore, broker: BrokerConnection, subjects: Subjects) -> bool:
    """Send the oldest of the events that wait; True when none waits any more."""

    async def send(event: AuditEvent) -> bool:
        message = AuditNotice(id=event.id, at=event.at, action=event.action, subject=event.subject, detail=event.detail)
        try:
            await broker.request(subjects.outcomes, message, Done)
        except NoAnswer:
            return False
        except MessageError as error:  # an endpoint of an earlier version; the next one will take it
            log.error("audit_event_refused", event_id=event.id, reason=str(error))
            return False
        return True

    while waiting := await store.audit_events():
        answers = await asyncio.gather(*(send(event) for event in waiting))
        taken = [event.id for event, answer in zip(waiting, answers, strict=True) if answer]
        if taken:
            await store.forget_audit_events(taken)
        if len(taken) < len(waiting):
            return False
    return True
