"""Group commit: what is asked for at the same time shares one transaction.

While one group is with the database, the next one gathers; nobody waits for a timer.
A commit costs the disk the same for one change as for a hundred, so under load
each costs a hundredth, and alone it costs what it always did.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pupitre.errors import Conflict, Invalid, PupitreError

T = TypeVar("T")
R = TypeVar("R")


class Batch(Generic[T, R]):
    """``work`` takes a group and gives each item's result, or its error, in the same order.

    When the group as a whole meets a `Conflict` or what no row can hold, each item is tried alone, so that one bad
    item is nobody else's trouble. Any other error of the whole is the error of every item.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[Sequence[R | PupitreError]]], *, limit: int = 256
    ) -> None:
        self._work = work
        self._limit = limit
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def do(self, item: T) -> R:
        """The item's own result. Raises its own error."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="batch")
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._take(group)
        finally:
            self._task = None
            for _, future in self._waiting:  # only if the loop is ending
                future.cancel()

    async def _take(self, group: Sequence[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            results: Sequence[R | PupitreError | Exception] = await self._work([item for item, _ in group])
        except (Conflict, Invalid) as error:
            if len(group) > 1:
                for one in group:
                    await self._take([one])
                return
            results = [error]
        except asyncio.CancelledError:
            for _, future in group:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach who asked, not end the batch for all to come
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue  # who asked has left
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
