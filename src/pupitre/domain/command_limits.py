"""Limits of what one user may ask for: the interval between two commands, and the quota of desktops."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pupitre.errors import LimitReached, TooEarly


@dataclass(frozen=True, slots=True)
class DesktopQuota:
    """Quota of a user. ``counted`` are the desktops that had a row in the status database.

    ``as_of`` is the version of the commands that was read before that: whatever a later version says may be missing.
    """

    limit: int
    counted: frozenset[str] = frozenset()
    as_of: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """A start that is under way, or that succeeded with ``version``."""

    desktop: str
    version: int
    is_under_way: bool


def check_interval(last: int | None, interval_ms: int, now: int) -> None:
    """Raises `TooEarly` less than ``interval_ms`` after the ``last`` command. Times are in Unix ms."""
    if last is None:
        return
    wait = last + interval_ms - now
    if 0 < wait <= interval_ms:  # a longer wait means that the clock was set back
        raise TooEarly(f"That was too quick: wait {wait / 1000:.1f} seconds and try again.", wait / 1000)


def desktops_counted(quota: DesktopQuota, starts: Iterable[Start]) -> frozenset[str]:
    """The desktops that count against a quota, each once.

    A desktop has its row in the status database before its start succeeds. So a start that succeeded by
    ``quota.as_of`` was counted there, or its desktop is gone; a later one counts here.
    """
    here = {start.desktop for start in starts if start.is_under_way or start.version > quota.as_of}
    return quota.counted | here


def check_quota(quota: DesktopQuota, desktops: Collection[str]) -> None:
    """Raises `LimitReached` where ``desktops`` are as many as the user may have."""
    if len(desktops) < quota.limit:
        return
    if not quota.limit:
        raise LimitReached("Your account may not start desktops. Ask your administrator.")
    plural = "desktop" if quota.limit == 1 else "desktops"
    raise LimitReached(
        f"You may have {quota.limit} {plural} at once and have {len(desktops)}. Stop one and start again."
    )
