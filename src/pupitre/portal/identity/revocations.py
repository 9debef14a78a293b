"""Passes on which sign-ins have ended, so that who watches a screen by one is shown out.

Every portal process does it, for whatever ended in any of them or on the command line.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pupitre.runtime.workers import retry_loop
from pupitre.store.accounts import SESSIONS, Accounts
from pupitre.store.revocations import Revocations


@asynccontextmanager
async def passing_on_revocations(accounts: Accounts, revocations: Revocations) -> AsyncIterator[None]:
    """Pass on revocations until the block ends."""

    async def pass_on() -> bool:
        ended = await accounts.revocations()
        if ended:
            await revocations.add(ended)
            await accounts.forget_revocations([revocation.token_hash for revocation in ended])
        return True

    async def hear() -> None:
        while True:
            due.set()
            await sessions.wait()

    due = asyncio.Event()
    async with accounts.database.listen(SESSIONS) as sessions, asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(hear()), tasks.create_task(retry_loop(pass_on, due))]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
