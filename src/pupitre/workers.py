"""One worker for each object: an object's work in order, different objects in parallel.

Level-triggered: a step looks at what is wanted and what is seen, and takes the
next step. Waking a worker twice before it looks is the same as waking it once.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pupitre.errors import PupitreError

log = structlog.get_logger(__name__)

Step = Callable[[str], Awaitable[float | None]]
"""Takes the object's key; None when there is nothing more to do, else seconds until the next look."""


class Workers:
    """``limit`` bounds how many steps run at once. A step that fails is tried again after ``retry`` seconds."""

    def __init__(self, step: Step, *, limit: int = 64, retry: float = 1.0) -> None:
        self._step = step
        self._slots = asyncio.Semaphore(limit)
        self._retry = retry
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._bells: dict[str, asyncio.Event] = {}
        self._closed = False

    def wake(self, key: str) -> None:
        """Have the object looked at, now or right after the step under way."""
        if self._closed:
            return
        if key in self._tasks:
            self._bells[key].set()
            return
        self._bells[key] = asyncio.Event()
        task = asyncio.create_task(self._run(key), name=f"worker {key}")
        self._tasks[key] = task

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str) -> None:
        bell = self._bells[key]
        try:
            while True:
                bell.clear()
                delay = await self._one_step(key)
                if bell.is_set():
                    continue
                if delay is None:
                    return
                try:
                    await asyncio.wait_for(bell.wait(), delay)
                except TimeoutError:
                    pass
        finally:
            # Between the last look at the bell and here nothing is awaited, so no ring is lost.
            del self._tasks[key], self._bells[key]

    async def _one_step(self, key: str) -> float | None:
        async with self._slots:
            try:
                return await self._step(key)
            except PupitreError as error:
                log.warning("A step failed and is tried again.", key=key, reason=str(error), seconds=self._retry)
                return self._retry
