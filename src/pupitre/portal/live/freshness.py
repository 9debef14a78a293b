"""Whether the cluster is reached, and how old what it said is: what is shown may be no older than it says."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pupitre.domain.status import ClusterLink
from pupitre.errors import NoAnswer
from pupitre.portal.context import Portal
from pupitre.runtime.clock import now_ms


@dataclass(frozen=True, slots=True)
class ClusterFreshness:
    """Times in Unix ms. ``since`` and ``heard`` are None for a cluster that was never heard of.

    ``stale``: the cluster has not confirmed its rows for longer than it should; ``age_ms`` is for how long.
    """

    connected: bool
    since: int | None = None
    reason: str | None = None
    heard: int | None = None
    age_ms: int | None = None
    stale: bool = True

    @property
    def age_s(self) -> float | None:
        """Age of all rows, in seconds, when they are too old; else None."""
        return self.age_ms / 1000 if self.stale and self.age_ms is not None else None


def cluster_freshness(portal: Portal) -> ClusterFreshness:
    """Freshness of the cluster; of several clusters, that of the one that is worst off."""
    stale_after = portal.settings.status_timings.stale_after
    return worst(portal.status.links, now=now_ms(), stale_after_ms=int(stale_after * 1000))


def worst(links: Sequence[ClusterLink], *, now: int, stale_after_ms: int) -> ClusterFreshness:
    """One that is out of reach before all others, then the one that was heard longest ago."""
    if not links:
        return ClusterFreshness(False, reason="No cluster has been heard of yet.")
    link = min(links, key=lambda link: (link.connected, link.heard))
    heard = link.heard or (link.since if link.connected else None)
    age = max(0, now - heard) if heard else None
    stale = age is None or age > stale_after_ms
    return ClusterFreshness(link.connected, link.since, link.reason, heard, age, stale)


async def check_reached(portal: Portal) -> None:
    """Raises `NoAnswer` when the cluster is out of reach and commands are to be refused then."""
    if portal.settings.when_unreachable == "queue":
        return
    if cluster_freshness(portal).connected:
        return
    await portal.status.refresh()  # it may just have come back
    link = cluster_freshness(portal)
    if not link.connected:
        raise NoAnswer(f"{unreachable_words(link)} Nothing has been asked of it. Try again in a minute.")


def unreachable_words(link: ClusterFreshness) -> str:
    """One sentence for people, without what mends it."""
    if link.since is None:
        return link.reason or "No cluster has been heard of yet."
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(link.since / 1000))
    return f"The cluster is unreachable since {since}{f' ({link.reason})' if link.reason else ''}."
