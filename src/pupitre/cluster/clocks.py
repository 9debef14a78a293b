"""How far the clock of each host is from the cluster's, measured from its heartbeats.

A heartbeat says what time it was when it was sent. It arrives later, never earlier, so of several the one
that was least on its way is the nearest to the truth: each shows a clock that is at least so far ahead.
"""

from collections import deque
from dataclasses import dataclass, field

from pupitre.domain.warning import HostWarning, WarningCode, warn

SAMPLES = 5
"""Heartbeats that are compared."""
APART = 0.1
"""Seconds between two of them: those that waited in one queue say the same."""
TOLERATED_MS = 5000
"""Milliseconds for which nobody is warned: consoles open at up to six times as much."""
CHANGE = 0.1
"""Part by which a difference has to change before it is written anew."""


@dataclass(slots=True)
class _Clock:
    differences: deque[int] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    taken: float = float("-inf")
    shown: int = 0


class Clocks:
    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}

    def heard(self, host: str, at: int, *, now: int, loop_time: float) -> tuple[HostWarning, ...] | None:
        """The host's warnings after a heartbeat that was sent at ``at`` (Unix ms by its clock); None: as before."""
        clock = self._clocks.setdefault(host, _Clock())
        if loop_time - clock.taken < APART:
            return None
        clock.taken = loop_time
        clock.differences.append(at - now)
        difference = max(clock.differences)
        if len(clock.differences) < SAMPLES:
            difference = max(0, difference)  # waiting makes no clock seem ahead, and any clock seem behind
        seconds = round(difference / 1000) if abs(difference) > TOLERATED_MS else 0
        if seconds == clock.shown or (clock.shown and seconds and _is_close(seconds, clock.shown)):
            return None
        clock.shown = seconds
        if not seconds:
            return ()
        code = WarningCode.CLOCK_AHEAD if seconds > 0 else WarningCode.CLOCK_BEHIND
        return (warn(code, abs(seconds)),)

    def forget(self, host: str) -> None:
        self._clocks.pop(host, None)


def _is_close(seconds: int, shown: int) -> bool:
    return abs(seconds - shown) <= abs(shown) * CHANGE
