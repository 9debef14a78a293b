"""Backoff: pauses between tries, each twice as long as the one before."""

import random

from pupitre.timings import Pauses


class Backoff:
    """Pauses of one series of tries. ``jitter`` 0.5 makes each from half to one and a half times as long.

    Processes that lost the same peer must not come back all at once: these use jitter.
    """

    def __init__(self, pauses: Pauses, *, jitter: float = 0.0) -> None:
        self._pauses = pauses
        self._jitter = jitter
        self._tries = 0

    def next(self) -> float:
        """Seconds until the next try."""
        self._tries += 1
        pause = self._pauses.after(self._tries)
        return pause * random.uniform(1 - self._jitter, 1 + self._jitter) if self._jitter else pause

    def reset(self) -> None:
        """A try has succeeded."""
        self._tries = 0
