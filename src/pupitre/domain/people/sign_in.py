"""Length of a sign-in: its end, how far it can be put off, and when people are warned of it (WCAG 2.2.1).

All times are in milliseconds, moments since 1970.
"""

WARNING = 5 * 60_000
"""Before the end; of a short sign-in it is a third."""
REASON_KEPT = 24 * 3600_000
"""After the end; so long somebody is told how their sign-in ended."""


def extended(created: int, expires: int, *, now: int, length: int, most: int) -> int:
    """The new end of a sign-in that is extended now: ``length`` from now, at most ``most`` long, never earlier."""
    return max(expires, min(now + length, created + most))


def warning(length: int) -> int:
    """Time before its end (ms) at which a sign-in of ``length`` is warned of."""
    return min(WARNING, length // 3)
