"""The link to the clusters as pages show it: who is out of reach, and how old the rows are."""

from typing import Any

from pupitre.portal.context import Portal
from pupitre.portal.live.freshness import cluster_freshness


def freshness(portal: Portal) -> dict[str, Any]:
    """``heard``: when every row was last confirmed (0: not known); ``stale_after``: how long that holds (ms)."""
    link = cluster_freshness(portal)
    return {
        "heard": link.heard or 0,
        "stale_after": int(portal.settings.status_timings.stale_after * 1000),
    }


def banner(portal: Portal) -> dict[str, Any]:
    """Clusters out of reach, and what still works. A cluster that was never heard of is one too."""
    links = portal.status.links
    return {
        "down": [link for link in links if not link.connected],
        "known": bool(links),
        "refuses": portal.settings.when_unreachable == "refuse",
        "grace": int(portal.settings.connection_grace * 1000),
        **freshness(portal),
    }
