"""The wall clock, as rows and messages keep it. Durations are measured by the event loop's own clock."""

import time


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
