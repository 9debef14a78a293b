"""Failed sign-ins are counted per name and per address; beyond the limit both wait.

Successes never count, so a whole class may sign in from one address at nine o'clock.
"""

import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from pupitre.errors import TooEarly


class Throttle:
    """``per_minute`` failures are allowed for a name, and as many for an address."""

    def __init__(self, per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(per_minute)
        self._window = MovingWindowRateLimiter(MemoryStorage())

    async def check(self, name: str, address: str) -> None:
        """Raises `TooEarly` when either has failed too often."""
        for kind, value in (("name", name), ("address", address)):
            if not await self._window.test(self._limit, kind, value):
                stats = await self._window.get_window_stats(self._limit, kind, value)
                wait = max(1.0, stats.reset_time - time.time())
                raise TooEarly(f"Too many failed sign-ins. Wait {wait:.0f} seconds and try again.", wait)

    async def failed(self, name: str, address: str) -> None:
        await self._window.hit(self._limit, "name", name)
        await self._window.hit(self._limit, "address", address)
