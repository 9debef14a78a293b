"""The wall clock, as rows and messages keep it. Durations are measured by the event loop's own clock."""

import time
from collections.abc import Callable

from pupitre.timings import CLOCK_BELIEVED, CLOCK_JUMP_MS


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class SteadyClock:
    """Unix milliseconds that do not jump with the machine's clock.

    They go on as the monotonic clock does. A wall clock that has been elsewhere for `CLOCK_BELIEVED` is believed:
    then it was set right, or is wrong for good. Small differences are followed at once.
    """

    def __init__(self, wall: Callable[[], int] = now_ms, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = self._difference()
        self._elsewhere_since: float | None = None

    def _difference(self) -> float:
        return self._wall() - self._monotonic() * 1000

    def now(self) -> int:
        at, offset = self._monotonic(), self._difference()
        if self._elsewhere_since is None and abs(offset - self._offset) > CLOCK_JUMP_MS:
            self._elsewhere_since = at
        elif abs(offset - self._offset) <= CLOCK_JUMP_MS:
            self._elsewhere_since = None
        if self._elsewhere_since is None or at - self._elsewhere_since >= CLOCK_BELIEVED:
            self._offset, self._elsewhere_since = offset, None
        return int(at * 1000 + self._offset)
