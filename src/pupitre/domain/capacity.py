"""Shortages of a host, now or soon: warnings from what it measures of itself."""

from pupitre.domain.host import HostFacts
from pupitre.domain.warning import HostWarning, WarningCode, warn

OVERLAY_RESERVE_MIB = 512
"""Disk a host must have free for one more overlay to grow into."""
NOTABLE_MIB = 64
"""Less than this beyond the books is no matter for people."""


def shortages(facts: HostFacts, growth_mib: int) -> list[HostWarning]:
    """``growth_mib`` is what the desktops' disks may still grow by, all together."""
    found = []
    if facts.disk_free_mib < OVERLAY_RESERVE_MIB:
        found.append(warn(WarningCode.DISK_FULL, facts.disk_free_mib))
    elif facts.disk_free_mib < growth_mib:
        found.append(warn(WarningCode.DISK_PROMISED, growth_mib >> 10, f"{facts.disk_free_mib >> 10} GiB"))
    if facts.over_books_mib >= NOTABLE_MIB:
        found.append(warn(WarningCode.MEMORY_OVER, facts.over_books_mib))
    return found
