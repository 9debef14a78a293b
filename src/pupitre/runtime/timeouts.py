"""Time limits that hold while a cancelled task clears up, too.

`asyncio.timeout` of Python before 3.11.3 (Debian 12 has 3.11.2) ends in `CancelledError` instead of
`TimeoutError` in a task that was cancelled before: whatever stands behind ``except TimeoutError`` is left out,
and with it the rest of the clearing up. Every process of ours ends by being cancelled.
"""

import asyncio
import sys
from types import TracebackType


def timeout(seconds: float | None) -> asyncio.Timeout:
    """Like `asyncio.timeout`, on every Python. Without ``seconds`` there is no limit."""
    when = None if seconds is None else asyncio.get_running_loop().time() + seconds
    return _TIMEOUT(when)


class _Timeout(asyncio.Timeout):  # type: ignore[misc]  # final since nobody should need this
    async def __aenter__(self) -> "_Timeout":
        task = asyncio.current_task()
        self._cancelled_before = task.cancelling() if task else 0
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        task = asyncio.current_task()
        assert task is not None
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        if self.expired() and cancelled and task.cancelling() <= self._cancelled_before:
            raise TimeoutError from error


_TIMEOUT: type[asyncio.Timeout] = asyncio.Timeout if sys.version_info >= (3, 11, 3) else _Timeout
