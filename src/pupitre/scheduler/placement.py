"""Placement of a desktop: a snapshot in; a host out, or one reason for each host.

A host fits when *everything* fits: state, edition flag, image copy, memory, vCPUs and disk. Among
those that fit, the one with the largest share of memory left is taken, then the first by name.
Desktops on their way count like running ones, so starts in flight are reserved for. What an overlay
will still grow nobody knows: the disk that is free now must hold a reserve for each start in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pupitre.domain.capacity import OVERLAY_RESERVE_MIB
from pupitre.domain.host import HostState


@dataclass(frozen=True, slots=True)
class Need:
    """Needs of a desktop."""

    image: str
    memory_mib: int
    vcpus: int
    edition: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host in the snapshot. ``used_*`` count every desktop placed there that is not gone.

    ``vcpus`` is how many virtual CPUs may be given out, over-commit included; ``starting`` counts
    desktops that are placed there and do not run yet. ``overhead_mib`` is what the guest in question would take
    there beyond its own memory, ``over_books_mib`` what the guests there are measured to take beyond what is
    counted for them. ``aside`` says why nothing is started there, if so.
    """

    name: str
    state: HostState
    edition: bool
    images: frozenset[str]
    memory_mib: int
    vcpus: int
    disk_free_mib: int
    used_memory_mib: int = 0
    used_vcpus: int = 0
    starting: int = 0
    label: str = ""
    aside: str = ""
    overhead_mib: int = 0
    over_books_mib: int = 0

    @property
    def title(self) -> str:
        """Label, or else the name."""
        return self.label or self.name

    @property
    def free_memory_mib(self) -> int:
        """Free memory by what is counted, or by what is measured where more is used."""
        return self.memory_mib - self.used_memory_mib - self.over_books_mib


@dataclass(frozen=True, slots=True)
class NoPlace:
    """``reasons`` has one entry for each host: what it is called, and words that follow "<host>: "."""

    reasons: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if not self.reasons:
            return "No host is registered. An administrator can add one on the Hosts page."
        return "No host has room: " + "; ".join(f"{name}: {reason}" for name, reason in self.reasons) + "."


def choose(need: Need, candidates: Sequence[Candidate]) -> str | NoPlace:
    """The name of the host to use, or why there is none."""
    reasons: list[tuple[str, str]] = []
    fitting: list[tuple[float, str]] = []
    for host in candidates:
        obstacle = _obstacle(need, host)
        if obstacle:
            reasons.append((host.title, obstacle))
        else:
            left = host.free_memory_mib - need.memory_mib - host.overhead_mib
            fitting.append((-left / host.memory_mib, host.name))
    return min(fitting)[1] if fitting else NoPlace(tuple(reasons))


def _obstacle(need: Need, host: Candidate) -> str | None:
    if host.state is not HostState.READY:
        return str(host.state).replace("_", " ")
    if host.aside:
        return host.aside
    if host.edition != need.edition:
        return "for editing images only" if host.edition else "not for editing images"
    if need.image not in host.images:
        return f"has no copy of {need.image} yet"
    short = need.memory_mib + host.overhead_mib - host.free_memory_mib
    if short > 0:
        return f"{short} MiB of memory short"
    short = need.vcpus - (host.vcpus - host.used_vcpus)
    if short > 0:
        return f"{short} virtual CPU{'s' if short > 1 else ''} short"
    short = OVERLAY_RESERVE_MIB * (host.starting + 1) - host.disk_free_mib
    if short > 0:
        return f"{short} MiB of disk short"
    return None
