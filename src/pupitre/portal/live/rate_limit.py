"""The interval between two commands of one user, as far as this process knows it.

The database decides, for all portals together. This only spares it the flood: who has
just been let in through this process is refused here, before anything is read or written.
"""

from pupitre.errors import TooEarly

MOST = 10_000
"""Users kept at most; then those are forgotten whose interval is over."""


class Gate:
    def __init__(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self._last: dict[str, int] = {}

    def check(self, user: str, now: int) -> None:
        """Raises `TooEarly`. Times are in Unix ms."""
        wait = self._last.get(user, 0) + self.interval_ms - now
        if 0 < wait <= self.interval_ms:  # a longer wait means that the clock was set back
            raise TooEarly(f"That was too quick: wait {wait / 1000:.1f} seconds and try again.", wait / 1000)

    def passed(self, user: str, at: int) -> None:
        """A command of the user was written down."""
        if len(self._last) >= MOST:
            self._last = {user: last for user, last in self._last.items() if last + self.interval_ms > at}
        self._last[user] = at
