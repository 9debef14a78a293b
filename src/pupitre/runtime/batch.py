"""Group commit: what is asked for at the same time is done as one.

While one group is on its way, the next one gathers. A commit, or a message, costs the
same for one thing as for a hundred, so under load each costs a hundredth. What
comes alone never waits; after a group of several, the next one is given `GATHER` to grow.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pupitre.errors import Conflict, Invalid, MessageError, PupitreError
from pupitre.timings import GATHER

T = TypeVar("T")
R = TypeVar("R")


_ONE_ALONE = (Conflict, Invalid, MessageError)
"""Errors of a whole group that one item alone may have brought."""


class Batch(Generic[T, R]):
    """``work`` takes a group and gives each item's result, or its error, in the same order.

    ``limit`` bounds a group, ``at_once`` how many are on their way. When a group as a whole meets an error
    that one item may have brought, each item is tried alone, so that a bad one is nobody else's trouble.
    Any other error of the whole is the error of every item.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R | PupitreError]]],
        *,
        limit: int = 256,
        at_once: int = 1,
    ) -> None:
        self._work = work
        self._limit = limit
        self._at_once = at_once
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def do(self, item: T) -> R:
        """The item's own result. Raises its own error."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._tasks) < self._at_once:
            task = asyncio.create_task(self._run(), name="batch")
            self._tasks.add(task)
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._take(group)
                if len(group) > 1:
                    await asyncio.sleep(GATHER)
        finally:
            # Here, not in a callback: who has just been answered may ask again before callbacks run.
            self._tasks.discard(asyncio.current_task())

    async def _take(self, group: Sequence[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            results: Sequence[R | PupitreError | Exception] = await self._work([item for item, _ in group])
        except _ONE_ALONE as error:
            if len(group) > 1:
                for one in group:
                    await self._take([one])
                return
            results = [error]
        except asyncio.CancelledError:
            # The loop is ending.
            for _, future in (*group, *self._waiting):
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach who asked, not end the batch for all
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue  # who asked has left
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
