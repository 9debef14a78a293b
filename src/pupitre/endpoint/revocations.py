"""Revocations of sign-ins on their way to the cluster: sent until every host that is there has taken them."""

import asyncio

import structlog

from pupitre.errors import MessageError, NoAnswer
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import retry_loop
from pupitre.store.revocations import REVOKED, Revocations
from pupitre.timings import RESEND, REVOCATION_LIMIT
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Done, RevokeSessions
from pupitre.wire.subjects import Subjects

AT_ONCE = 5000
"""Revocations in one message, which has to stay under a megabyte."""

log = structlog.get_logger(__name__)


async def send_revocations(revocations: Revocations, broker: BrokerConnection, subjects: Subjects) -> None:
    """Send revocations to the cluster until cancelled."""

    async def send() -> bool:
        ended = await revocations.to_send()
        for first in range(0, len(ended), AT_ONCE):
            some = ended[first : first + AT_ONCE]
            try:
                await broker.request(
                    subjects.commands, RevokeSessions(bearers=tuple(some)), Done, timeout=REVOCATION_LIMIT
                )
            except (NoAnswer, MessageError) as error:
                log.debug("revocations_not_taken", reason=str(error))
                return False
            await revocations.mark_sent(some, now=now_ms())
        return True

    async def listen() -> None:
        async with revocations.database.listen(REVOKED) as listener:
            while True:
                due.set()
                await listener.wait()

    due = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen())
        tasks.create_task(retry_loop(send, due, pauses=RESEND))
