"""Times at which a process looks at its certificates, and at which it speaks of the days that they have left."""

import datetime

WARN_AT = (30, 14, 7, 3, 1, 0)
"""Days left at which a process warns, once for each."""
WARN_DAYS = WARN_AT[0]
"""Days left from which a certificate is worth a warning to people, unless it has just been issued for less."""
RENEW_AFTER = 2 / 3
"""Part of a certificate's life after which a new one is due."""
_DAY = 86400


def look_again(life: float) -> float:
    """Seconds between two looks at the files of a certificate with ``life`` seconds from first to last.

    No event tells of a file that was copied here from another machine. A usual certificate is looked at every
    half minute, one that lives for seconds often enough to be renewed in time.
    """
    return min(30.0, max(0.2, life / 100))


def days_left(expires: datetime.datetime, now: datetime.datetime) -> float:
    """Negative once it has expired."""
    return (expires - now).total_seconds() / _DAY


def is_near_its_end(left: float, life: float) -> bool:
    """Whether people should know: less than `WARN_DAYS` are left, and renewal, which needs nobody, is overdue.

    Both in days. Renewal by the process itself comes at `RENEW_AFTER` of the life, so a tenth of the life later
    nobody has renewed it.
    """
    return left < min(WARN_DAYS, life * (0.9 - RENEW_AFTER))


def threshold(left: float) -> int | None:
    """The last entry of `WARN_AT` that was passed with ``left`` days; None before the first."""
    return min((days for days in WARN_AT if left <= days), default=None)
