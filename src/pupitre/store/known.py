"""What the cluster's database holds, kept in memory from one transaction to the next.

The cluster is the only one that writes these rows, and each of its transactions takes the
next version. So while the version that a transaction takes follows on the last one that is
known here, nothing needs to be read again; where it does not, everything is.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec
from sqlalchemy import select

from pupitre.domain.command import desktop_of
from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import CopyState, Image, ImageSpec
from pupitre.store.cluster_rows import Entry, HostEntry, Placed, entry_from_row, placed_from_row
from pupitre.store.rows import host_from_row, image_from_row
from pupitre.store.schema import cluster_copies, cluster_desktops, cluster_hosts, journal
from pupitre.store.sql.dialect import Connection

THERE = sorted(frozenset(DesktopState) - {DesktopState.GONE})
STARTING = frozenset({DesktopState.REQUESTED, DesktopState.PREPARING, DesktopState.BOOTING})

Copies = Sequence[tuple[Image, ImageSpec | None]]
"""A host's copies of images, each with what a guest is started from."""


@dataclass(slots=True)
class Known:
    """As of ``version``: every host, every copy, every desktop that is not gone, every command without outcome.

    What is not here is gone, has ended, or was never there. ``images`` are those that a host has ready, by
    host and id; ``specs`` those of all copies that ever were; ``starting`` is how many desktops start on a host.
    """

    version: int = -1
    hosts: dict[str, HostEntry] = field(default_factory=dict)
    images: dict[str, dict[str, Image]] = field(default_factory=dict)
    specs: dict[tuple[str, str], ImageSpec | None] = field(default_factory=dict)
    desktops: dict[str, Placed] = field(default_factory=dict)
    starting: Counter[str] = field(default_factory=Counter)
    entries: dict[str, Entry] = field(default_factory=dict)
    _about: dict[str | None, set[str]] = field(default_factory=dict)

    @classmethod
    async def read(cls, connection: Connection, version: int) -> "Known":
        """In a transaction that keeps others from writing."""
        known = cls(version)
        for row in await connection.execute(_HOSTS):
            known.hosts[row.name] = HostEntry(
                host_from_row(row), row.wanted, row.drained_by, row.used_memory_mib, row.used_vcpus
            )
        for row in await connection.execute(_COPIES):
            known.specs[row.host, row.image] = _spec(row.spec) if row.spec else None
            if row.state == CopyState.READY and not row.gone:
                known.images.setdefault(row.host, {})[row.image] = image_from_row(row)
        known.put_desktops(placed_from_row(row) for row in await connection.execute(_DESKTOPS))
        for placed in known.desktops.values():
            if placed.seen.state in STARTING and placed.seen.host in known.hosts:
                known.starting[placed.seen.host] += 1
        known.put_entries(entry_from_row(row) for row in await connection.execute(_ENTRIES))
        return known

    def on(self, hosts: Collection[str]) -> list[Placed]:
        """Every desktop on these hosts."""
        return [placed for placed in self.desktops.values() if placed.counted_on in hosts] if hosts else []

    def about(self, desktop: str | None) -> list[Entry]:
        """Commands about a desktop; with None, those about hosts."""
        return [self.entries[id] for id in self._about.get(desktop, ())]

    def spec(self, placed: Placed) -> ImageSpec | None:
        """What its host would start a desktop from."""
        return self.specs.get((placed.seen.host or "", placed.seen.image))

    def put_desktops(self, desktops: Iterable[Placed]) -> None:
        for placed in desktops:
            if placed.seen.state is DesktopState.GONE:
                self.desktops.pop(placed.seen.id, None)
            else:
                self.desktops[placed.seen.id] = placed

    def put_entries(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            desktop = desktop_of(entry.order)
            if entry.outcome is None:
                self.entries[entry.id] = entry
                self._about.setdefault(desktop, set()).add(entry.id)
            elif self.entries.pop(entry.id, None):
                self._about[desktop].discard(entry.id)
                if not self._about[desktop]:
                    del self._about[desktop]

    def put_specs(self, host: str, copies: Copies) -> None:
        self.specs |= {(host, image.id): spec for image, spec in copies}


_HOSTS = select(cluster_hosts)
_COPIES = select(cluster_copies)
_DESKTOPS = select(cluster_desktops).where(cluster_desktops.c.state.in_(THERE))
_ENTRIES = select(journal).where(journal.c.outcome.is_(None))


@lru_cache
def _spec(text: str) -> ImageSpec:
    return msgspec.json.decode(text, type=ImageSpec)
