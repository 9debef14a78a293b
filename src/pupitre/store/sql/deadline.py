"""A limit on each wait for a database's driver that no driver can lose.

Drivers wait by `asyncio.wait_for` and the like, which before Python 3.12 swallow a cancellation
that comes together with an answer: a task that was to end goes on for ever, and a limit that
works by a cancellation never ends anything. So an overdue connection is closed first; a wait
that outlives its connection is cancelled, again and again; and a cancellation that the driver
has swallowed is raised when it returns.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from pupitre.timings import DATABASE_CANCEL


class Overdue(TimeoutError):
    """The driver had no answer within its limit, or gave up the wait by itself."""


class Deadline:
    """``with deadline:`` around each wait of one connection, one at a time.

    ``seconds`` are its limit; ``close`` ends the connection at once, without waiting. Raises `Overdue`, and
    `asyncio.CancelledError` where the driver has swallowed it. A timer is set once in ``seconds``, not with each wait.
    """

    def __init__(self, seconds: float, close: Callable[[], object] = lambda: None) -> None:
        self._seconds = seconds
        self._close = close
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        self._cancelled_here = 0
        self._is_over = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelled_before = self._task.cancelling()
        self._due = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return  # nothing is waited for; the next wait sets the timer
        loop = asyncio.get_running_loop()
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._look)
            return
        if not self._is_over:
            self._is_over = True
            self._close()
        else:
            assert self._task is not None
            self._cancelled_here += 1
            self._task.cancel()
        self._timer = loop.call_later(DATABASE_CANCEL, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, is_over, ours = self._task, self._is_over, self._cancelled_here
        assert task is not None
        self._due, self._task, self._is_over, self._cancelled_here = None, None, False, 0
        if is_over and self._timer:
            self._timer.cancel()
            self._timer = None
        for _ in range(ours):
            task.uncancel()
        is_cancelled = task.cancelling() > self._cancelled_before
        if error is None:
            if is_cancelled:
                raise asyncio.CancelledError
            return
        if is_cancelled and isinstance(error, Exception):
            raise asyncio.CancelledError from error
        if is_over and isinstance(error, Exception):
            raise Overdue(f"no answer within {self._seconds:g} s") from error
        if isinstance(error, asyncio.CancelledError) and not is_cancelled:
            # Nobody has cancelled the task: whoever saw this would take it for its own end.
            reason = f"no answer within {self._seconds:g} s" if is_over else "the driver gave up"
            raise Overdue(reason) from error
