"""Work that is done until it is done: one worker for each object, loops that persist, and what waits to begin.

Level-triggered: a step looks at what is wanted and what is seen, and takes the
next step. Waking a worker twice before it looks is the same as waking it once.
With `Workers` an object's work is in order, and different objects' in parallel.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import structlog

from pupitre.errors import PupitreError, Unavailable
from pupitre.runtime.backoff import Backoff
from pupitre.runtime.timeouts import timeout
from pupitre.timings import DATABASE_RETRY, RETRY, STEP_RETRY, Pauses

log = structlog.get_logger(__name__)

T = TypeVar("T")


Step = Callable[[str], Awaitable[float | None]]
"""Takes the object's key; None when there is nothing more to do, else seconds until the next look."""


class Workers:
    """``limit`` bounds how many steps run at once.

    A step that fails is tried again after the pauses of ``retry``.
    """

    def __init__(self, step: Step, *, limit: int = 64, retry: Pauses = STEP_RETRY) -> None:
        self._step = step
        self._slots = asyncio.Semaphore(limit)
        self._retry = retry
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wakeups: dict[str, asyncio.Event] = {}
        self._closed = False

    def wake(self, key: str) -> None:
        """Have the object looked at, now or right after the step under way."""
        if self._closed:
            return
        if key in self._tasks:
            self._wakeups[key].set()
            return
        self._wakeups[key] = asyncio.Event()
        task = asyncio.create_task(self._run(key), name=f"worker {key}")
        self._tasks[key] = task

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str) -> None:
        wakeup = self._wakeups[key]
        backoff = Backoff(self._retry)
        try:
            while True:
                wakeup.clear()
                try:
                    async with self._slots:
                        delay = await self._step(key)
                    backoff.reset()
                except PupitreError as error:
                    delay = backoff.next()
                    log.warning("step_failed", key=key, reason=str(error), seconds=delay)
                except Exception:  # a fault of ours with one object must neither end its worker nor go unseen
                    delay = backoff.next()
                    log.exception("step_failed_unexpectedly", key=key, seconds=delay)
                if wakeup.is_set():
                    continue
                if delay is None:
                    return
                await wait_or_timeout(wakeup, delay)
        finally:
            # Between the last look at the wake-up and here nothing is awaited, so none is lost.
            del self._tasks[key], self._wakeups[key]


async def retry_loop(work: Callable[[], Awaitable[bool]], due: asyncio.Event, *, pauses: Pauses = RETRY) -> None:
    """Call ``work`` whenever ``due`` is set, and again, with growing pauses, until it returns True. Never returns.

    A `PupitreError` is a try that failed.
    """
    pause: float | None = None
    backoff = Backoff(pauses)
    while True:
        await wait_or_timeout(due, pause)
        due.clear()
        try:
            done = await work()
        except PupitreError as error:
            log.warning("work_failed", what=getattr(work, "__name__", ""), reason=str(error))
            done = False
        if done:
            pause = None
            backoff.reset()
        else:
            pause = backoff.next()


async def retry_until_available(work: Callable[[], Awaitable[T]]) -> T:
    """Result of ``work`` once the database that it needs answers; until then it is tried again and again."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            log.warning("database_away", reason=str(error))
            await asyncio.sleep(DATABASE_RETRY)


async def wait_or_timeout(wakeup: asyncio.Event, seconds: float | None) -> None:
    """Return when ``wakeup`` is set, or after ``seconds``.

    Not by `asyncio.wait_for`: before Python 3.12 it loses a cancellation that comes together
    with what it waits for, and a loop that is to end goes on for ever.
    """
    with contextlib.suppress(TimeoutError):
        async with timeout(seconds):
            await wakeup.wait()


@contextlib.contextmanager
def ungrouped(*kinds: type[Exception]) -> Iterator[None]:
    """Around a `asyncio.TaskGroup`: where all errors are of these ``kinds``, the first is raised without its group.

    Not by ``except*``: what is raised inside one comes out in another group, before Python 3.11.4.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        matching, others = group.split(kinds)
        if matching is None or others is not None:
            raise
        error: BaseException = matching
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
