"""Tells the cluster which sign-ins have ended, again and again, until every host that is there has heard it."""

import asyncio

import structlog

from pupitre.errors import LinkDown, MessageError
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import persist
from pupitre.store.revocations import ENDED, Endings
from pupitre.wire.connection import Link
from pupitre.wire.messages import Done, EndSignIns
from pupitre.wire.subjects import Subjects

RETELL = (0.25, 2.0)
"""Seconds between two tries: at first, and at most."""
ANSWER_LIMIT = 5.0
"""Seconds for the cluster to ask all hosts."""
AT_ONCE = 5000
"""Endings in one message, which has to stay under a megabyte."""

log = structlog.get_logger(__name__)


async def tell_endings(endings: Endings, link: Link, subjects: Subjects) -> None:
    """Until cancelled."""

    async def tell() -> bool:
        ended = await endings.to_tell()
        for first in range(0, len(ended), AT_ONCE):
            some = ended[first : first + AT_ONCE]
            try:
                await link.request(subjects.commands, EndSignIns(bearers=tuple(some)), Done, timeout=ANSWER_LIMIT)
            except (LinkDown, MessageError) as error:
                log.debug("Not every host knows yet which sign-ins have ended.", reason=str(error))
                return False
            await endings.told(some, now=now_ms())
        return True

    async def hear() -> None:
        async with endings.database.listen(ENDED) as ended:
            while True:
                due.set()
                await ended.heard()

    due = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hear())
        tasks.create_task(persist(tell, due, pauses=RETELL))
