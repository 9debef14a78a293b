"""Status: the rows that the cluster tells the website, in numbered changes."""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from pupitre.domain.bounds import MOST_ROWS, Name, Number
from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.image import CopyState, Image

_FEW = msgspec.Meta(max_length=MOST_ROWS)


@dataclass(frozen=True, slots=True)
class HostImage:
    """An image on one host; ``gone`` when that host no longer has it."""

    host: Name
    image: Image
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they are now; a row replaces the one with its key."""

    hosts: Annotated[tuple[Host, ...], _FEW] = ()
    copies: Annotated[tuple[HostImage, ...], _FEW] = ()
    desktops: Annotated[tuple[Desktop, ...], _FEW] = ()

    def __bool__(self) -> bool:
        return bool(self.hosts or self.copies or self.desktops)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Position of a reader of changes: the cluster's epoch and the number of the last change seen.

    A new epoch (the cluster's database was replaced) makes all earlier numbers void.
    """

    epoch: Number = 0
    sequence: Number = 0


@dataclass(frozen=True, slots=True)
class ClusterLink:
    """Whether the endpoint reaches the cluster, and since when (Unix ms).

    ``heard`` is when the cluster last said that all rows are as they stand (Unix ms).
    """

    cluster: str
    connected: bool
    since: int
    reason: str | None = None
    heard: int = 0


_BEST_FIRST = (CopyState.READY, CopyState.FETCHING, CopyState.STALE, CopyState.WANTED, CopyState.FAILED)


def catalogue(copies: list[HostImage]) -> list[Image]:
    """The images of all hosts, each once, as its best copy, by name."""
    best: dict[str, Image] = {}
    for copy in copies:
        held = best.get(copy.image.id)
        if held is None or _BEST_FIRST.index(copy.image.state) < _BEST_FIRST.index(held.state):
            best[copy.image.id] = copy.image
    return sorted(best.values(), key=lambda image: image.name)
