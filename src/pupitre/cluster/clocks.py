"""Clock of a host: how far it is from the cluster's, measured from its heartbeats.

A heartbeat says what time it was when it was sent. It arrives later, never earlier, so of several the one
that was least on its way is the nearest to the truth: each shows a clock that is at least so far ahead.
"""

from collections import deque
from dataclasses import dataclass, field

from pupitre.domain.warning import HostWarning, WarningCode, warn
from pupitre.timings import CLOCK_SAMPLE, CLOCK_TOLERATED_MS

SAMPLES = 5
"""Heartbeats that are compared."""
CHANGE = 0.1
"""Part by which a difference has to change before it is written anew."""


@dataclass(slots=True)
class ClockEstimate:
    """Difference of one host's clock; ``shown`` is what people were told last, in seconds."""

    differences: deque[int] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    taken: float = float("-inf")
    shown: int = 0

    def add(self, at: int, *, now: int, loop_time: float) -> tuple[HostWarning, ...] | None:
        """Warnings after a heartbeat that was sent at ``at`` (Unix ms by the host's clock); None: as before."""
        if loop_time - self.taken < CLOCK_SAMPLE:
            return None
        self.taken = loop_time
        self.differences.append(at - now)
        difference = max(self.differences)
        if len(self.differences) < SAMPLES:
            difference = max(0, difference)  # waiting makes no clock seem ahead, and any clock seem behind
        seconds = round(difference / 1000) if abs(difference) > CLOCK_TOLERATED_MS else 0
        if seconds == self.shown or (self.shown and seconds and _is_close(seconds, self.shown)):
            return None
        self.shown = seconds
        if not seconds:
            return ()
        code = WarningCode.CLOCK_AHEAD if seconds > 0 else WarningCode.CLOCK_BEHIND
        return (warn(code, abs(seconds)),)


def _is_close(seconds: int, shown: int) -> bool:
    return abs(seconds - shown) <= abs(shown) * CHANGE
