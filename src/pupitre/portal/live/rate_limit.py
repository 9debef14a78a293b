"""Rate limit of commands: the interval between two of one user, as far as this process knows it.

The database decides, for all portals together. This only spares it the flood: who has
just been let in through this process is refused here, before anything is read or written.
"""

from pupitre.domain.command_limits import check_interval

MOST = 10_000
"""Users kept at most; then those are forgotten whose interval is over."""


class CommandRateLimit:
    """``interval_ms`` is the least time between two commands of a user."""

    def __init__(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self._last: dict[str, int] = {}

    def check(self, user: str, now: int) -> None:
        """Raises `TooEarly`. Times are in Unix ms."""
        check_interval(self._last.get(user), self.interval_ms, now)

    def passed(self, user: str, at: int) -> None:
        """A command of the user was written down."""
        if len(self._last) >= MOST:
            self._last = {user: last for user, last in self._last.items() if last + self.interval_ms > at}
        self._last[user] = at
