"""Backoff: pauses between tries, each twice as long as the one before."""

import random
from typing import NamedTuple


class Pauses(NamedTuple):
    """The first and the longest pause, in seconds."""

    first: float
    longest: float


class Backoff:
    """Pauses of one series of tries. ``jitter`` 0.5 makes each from half to one and a half times as long.

    Processes that lost the same peer must not come back all at once: these use jitter.
    """

    def __init__(self, pauses: Pauses, *, jitter: float = 0.0) -> None:
        self._pauses = pauses
        self._jitter = jitter
        self._next = pauses.first

    def next(self) -> float:
        """Seconds until the next try."""
        pause, self._next = self._next, min(self._next * 2, self._pauses.longest)
        return pause * random.uniform(1 - self._jitter, 1 + self._jitter) if self._jitter else pause

    def reset(self) -> None:
        """A try has succeeded."""
        self._next = self._pauses.first
