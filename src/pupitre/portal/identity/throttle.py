"""Wrong passwords are counted, and beyond a limit attempts are refused unseen; administrators see it and lift it.

What is counted and how slow that makes guessing is in `pupitre.domain.people.throttle`; the
counts stand in the database, for all portals together.
"""

import time
from collections.abc import Sequence

from pupitre.domain.people.throttle import Counter, Tally, is_locked, limits, of_device, of_stranger
from pupitre.errors import TooEarly
from pupitre.runtime.clock import now_ms
from pupitre.store.sign_in_failures import Failures
from pupitre.timings import THROTTLE_PRUNE


class Throttle:
    """``per_minute`` is the limit of one name at one address."""

    def __init__(self, failures: Failures, per_minute: int) -> None:
        self._failures = failures
        self._limits = limits(per_minute)
        self._pruned = time.monotonic()

    async def check(self, name: str, address: str, device: str | None) -> tuple[Counter, ...]:
        """Counters in which a failure would be counted. ``device`` is the id of a browser that this account knows.

        Raises `TooEarly`, before any password is looked at.
        """
        own, others = of_device(name, device) if device else (), of_stranger(name, address)
        tallies = await self._failures.tallies((*own, *others))
        locked = {tally.counter.id: tally for tally in tallies if is_locked(tally, self._limits, now_ms())}
        if own and own[0].id not in locked:
            return own
        ends = [locked[counter.id].until for counter in others if counter.id in locked]
        if ends:
            wait = max(1.0, (max(ends) - now_ms()) / 1000)
            raise TooEarly(
                f"Too many failed sign-ins. Wait {_words(wait)}, or ask an administrator to lift the lock.",
                wait,
            )
        return others

    async def failed(self, counters: Sequence[Counter]) -> list[Tally]:
        """Count a failure; what is locked from now on."""
        tallies = await self._failures.count(counters, self._limits, now=now_ms())
        if time.monotonic() - self._pruned > THROTTLE_PRUNE:
            self._pruned = time.monotonic()
            await self._failures.prune(now=now_ms())
        return [tally for tally in tallies if tally.failures == self._limits[tally.counter.kind].failures]

    async def locks(self) -> list[Tally]:
        """Locks in force, the one that ends first first."""
        now = now_ms()
        return [tally for tally in await self._failures.in_force(now=now) if is_locked(tally, self._limits, now)]

    async def lift(self, lock: Tally) -> bool:
        """Begin to count anew. False when somebody else has done so meanwhile."""
        return await self._failures.forget([lock.counter])


def _words(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
