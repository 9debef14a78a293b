"""What one transaction on the database ``cluster`` sees and changes: plain values in memory.

`Transaction.load` reads what decisions need, they decide, `Transaction.save` writes
what they changed. Many decisions may share one, each seeing what those before it did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import uuid_utils
from sqlalchemy import Integer, and_, bindparam, delete, func, insert, not_, or_, select, update

from pupitre.domain.command import CommandKind, CommandState, Fault, desktop_of
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host
from pupitre.domain.image import CopyState, Image, ImageSpec
from pupitre.domain.placement import Candidate
from pupitre.domain.status import Rows
from pupitre.errors import Unavailable
from pupitre.store.cluster_rows import (
    Doubt,
    Entry,
    HostEntry,
    Note,
    Placed,
    desktop_values,
    entry_from_row,
    entry_values,
    outcome_values,
    placed_from_row,
)
from pupitre.store.dialect import Connection
from pupitre.store.rows import (
    copy_to_row,
    host_from_row,
    host_to_row,
    image_from_row,
)
from pupitre.store.schema import (
    cluster_copies,
    cluster_desktops,
    cluster_hosts,
    epochs,
    host_doubts,
    journal,
    notes,
)
from pupitre.store.upsert import upsert_rows
from pupitre.store.versioned import put_rows

MOST_SUBJECT, MOST_DETAIL = 255, 1000
"""Characters of a note."""
THERE = sorted(frozenset(DesktopState) - {DesktopState.GONE})
STARTING_STATES = (DesktopState.REQUESTED, DesktopState.PREPARING, DesktopState.BOOTING)

Outcomes = list[tuple[Entry, Rows]]
"""Commands that have ended, each with the rows that it was about as they were then."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a decision has to see besides all hosts: it is there, or known not to be.

    ``desktops`` come with their open commands; ``hosts`` are hosts of which every desktop is needed;
    ``copies`` says whether images matter, ``host_commands`` whether open commands about hosts do.
    """

    commands: frozenset[str] = frozenset()
    desktops: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    copies: bool = False
    host_commands: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.commands | other.commands,
            self.desktops | other.desktops,
            self.hosts | other.hosts,
            self.copies or other.copies,
            self.host_commands or other.host_commands,
        )


class Transaction:
    """What decisions see and change: plain values in memory, read before and written after them."""

    def __init__(self, doubts: Mapping[str, Doubt] | None = None) -> None:
        self.doubts: dict[str, Doubt] = dict(doubts or {})
        self._doubts_held = dict(self.doubts)
        self.confirmed_before = 0
        self._repeated: set[str] = set()
        self.entries: dict[str, Entry] = {}
        self.desktops: dict[str, Placed] = {}
        self.hosts: dict[str, HostEntry] = {}
        self.images: dict[str, dict[str, Image]] = {}
        self.starting: dict[str, int] = {}
        self._entries_held: dict[str, Entry] = {}
        self._desktops_held: dict[str, Placed] = {}
        self._hosts_held: dict[str, HostEntry] = {}
        self._accepted: dict[str, int] = {}
        self._copies: dict[str, Sequence[tuple[Image, ImageSpec | None]]] = {}
        self._notes: dict[str, Note] = {}
        self.removed_hosts: set[str] = set()

    # Commands

    def entry(self, command_id: str) -> Entry | None:
        return self.entries.get(command_id)

    def add_entry(self, entry: Entry, *, now: int) -> None:
        self.entries[entry.id] = entry
        self._accepted[entry.id] = now

    def finish(self, command_id: str, outcome: CommandState, fault: Fault | None = None) -> None:
        """Record the one outcome; a second one changes nothing."""
        held = self.entries[command_id]
        if held.outcome is None:
            self.entries[command_id] = replace(held, outcome=outcome, fault=fault)

    def repeat(self, command_id: str) -> None:
        """Report an outcome once more: it is asked for again."""
        self._repeated.add(command_id)

    def open_entries(self, desktop_id: str, kind: CommandKind) -> list[Entry]:
        return [
            entry
            for entry in self.entries.values()
            if entry.outcome is None and entry.order.kind is kind and desktop_of(entry.order) == desktop_id
        ]

    # Desktops

    def desktop(self, desktop_id: str) -> Placed | None:
        return self.desktops.get(desktop_id)

    def desktops_on(self, host: str) -> list[Placed]:
        """Needs the host in `Needs.hosts`."""
        return [placed for placed in self.desktops.values() if placed.counted_on == host]

    def put_desktop(self, placed: Placed) -> None:
        held = self.desktops.get(placed.seen.id)
        self.desktops[placed.seen.id] = placed
        for one, sign in ((held, -1), (placed, 1)):
            if one is not None and (host := self.hosts.get(one.counted_on or "")):
                self.hosts[host.host.name] = replace(
                    host,
                    used_memory_mib=host.used_memory_mib + sign * one.memory_mib,
                    used_vcpus=host.used_vcpus + sign * one.vcpus,
                )
                if one.seen.state in STARTING_STATES:
                    self.starting[host.host.name] = self.starting.get(host.host.name, 0) + sign

    # Hosts and images

    def host(self, name: str) -> Host | None:
        held = self.hosts.get(name)
        return held.host if held else None

    def put_host(self, host: Host, **changes: Any) -> None:
        """``changes`` are other fields of `HostEntry`."""
        held = self.hosts.get(host.name) or HostEntry(host)
        self.hosts[host.name] = replace(held, host=host, **changes)

    def remove_host(self, name: str) -> None:
        """With its copies; its desktops must be gone."""
        self.hosts.pop(name, None)
        self.removed_hosts.add(name)
        self.put_copies(name, [])

    def put_copies(self, host: str, copies: Sequence[tuple[Image, ImageSpec | None]]) -> None:
        """Replace the copies of one host; those not named are marked gone."""
        self._copies[host] = copies
        self.images[host] = {image.id: image for image, _ in copies if image.state is CopyState.READY}

    def image(self, image_id: str) -> Image | None:
        """The image as some host has it ready. Needs `Needs.copies`."""
        return next((images[image_id] for images in self.images.values() if image_id in images), None)

    def candidates(self, *, overcommit: float) -> list[Candidate]:
        """The snapshot for placement. Needs `Needs.copies`."""
        return [
            Candidate(
                name=entry.host.name,
                state=entry.host.state,
                edition=entry.host.edition,
                images=frozenset(self.images.get(entry.host.name, ())),
                memory_mib=entry.host.facts.memory_mib if entry.host.facts else 0,
                vcpus=int(entry.host.facts.vcpus * overcommit) if entry.host.facts else 0,
                disk_free_mib=entry.host.facts.disk_free_mib if entry.host.facts else 0,
                used_memory_mib=entry.used_memory_mib,
                used_vcpus=entry.used_vcpus,
                starting=self.starting.get(entry.host.name, 0),
                label=entry.host.title,
            )
            for _, entry in sorted(self.hosts.items())
        ]

    def note(self, action: str, subject: str, detail: str, *, now: int, id: str | None = None) -> None:
        """Have the audit log say, once for each ``id``, what was settled without anybody's asking."""
        note = Note(id or str(uuid_utils.uuid7()), now, action, subject[:MOST_SUBJECT], detail[:MOST_DETAIL])
        self._notes[note.id] = note

    @property
    def rows(self) -> Rows | None:
        """The hosts and desktops that have changed; None where that is not all there is to tell."""
        if self._copies or self.removed_hosts:
            return None
        return Rows(
            hosts=self._hosts_changed,
            desktops=tuple(
                one.seen for id, one in self.desktops.items() if _seen_of(self._desktops_held.get(id)) != one.seen
            ),
        )

    @property
    def outcomes(self) -> Outcomes | None:
        """What there is to report; None where that has to be read."""
        if self._repeated:
            return None
        found = []
        for id, entry in self.entries.items():
            if entry.outcome is not None and self._entries_held.get(id) != entry:
                placed = self.desktops.get(desktop_of(entry.order) or "")
                about = Rows(desktops=(placed.seen,)) if placed else Rows(hosts=self._hosts_changed)
                found.append((entry, about))
        return found

    @property
    def _hosts_changed(self) -> tuple[Host, ...]:
        return tuple(one.host for name, one in self.hosts.items() if _host_of(self._hosts_held.get(name)) != one.host)

    @property
    def has_notes(self) -> bool:
        return bool(self._notes)

    # Between the database and memory

    async def load(self, connection: Connection, needs: Needs) -> None:
        for row in await connection.execute(_HOSTS_AND_STARTS if needs.copies else _HOSTS):
            self.hosts[row.name] = HostEntry(
                host_from_row(row), row.wanted, row.drained_by, row.used_memory_mib, row.used_vcpus
            )
            if needs.copies:
                self.starting[row.name] = row.starting
        if needs.copies:
            await self._load_copies(connection)
        if needs.desktops:
            for row in await connection.execute(_DESKTOPS, {"ids": list(needs.desktops)}):
                self.desktops[row.id] = placed_from_row(row)
        if needs.hosts:
            for row in await connection.execute(_ON_HOSTS, {"hosts": list(needs.hosts)}):
                self.desktops[row.id] = placed_from_row(row)
        about = needs.desktops | self.desktops.keys()
        found = await connection.execute(_ENTRIES, {"ids": list(needs.commands), "about": list(about)})
        if needs.host_commands:
            found += await connection.execute(_ABOUT_HOSTS)
        for row in sorted(found, key=lambda row: row.id):
            self.entries[row.id] = entry_from_row(row)
        self._entries_held, self._desktops_held = dict(self.entries), dict(self.desktops)
        self._hosts_held = dict(self.hosts)

    async def _load_copies(self, connection: Connection) -> None:
        for row in await connection.execute(_READY_COPIES):
            self.images.setdefault(row.host, {})[row.image] = image_from_row(row)

    async def save(self, connection: Connection, version: int) -> bool:
        """Write what has changed; False when nothing has. A row that stays as it is keeps its version."""
        changed = [placed for id, placed in self.desktops.items() if self._desktops_held.get(id) != placed]
        await upsert_rows(
            connection, cluster_desktops, [{**desktop_values(one), "version": version} for one in changed]
        )
        hosts = await self._save_hosts(connection, version)
        for host, copies in self._copies.items():
            hosts |= await self._save_copies(connection, host, copies, version)
        entries = await self._save_entries(connection)
        doubts = await self._save_doubts(connection)
        if self._repeated:
            await connection.execute(update(journal).where(journal.c.id.in_(self._repeated)).values(reported=False))
        if self._notes:
            await upsert_rows(connection, notes, [asdict(note) for note in self._notes.values()])
        return bool(changed or hosts or entries or doubts or self._repeated or self._notes)

    async def _save_doubts(self, connection: Connection) -> bool:
        if self.confirmed_before:
            later = epochs.c.confirmed < self.confirmed_before
            await connection.execute(update(epochs).where(later).values(confirmed=self.confirmed_before))
        settled = self._doubts_held.keys() - self.doubts.keys()
        if settled:
            await connection.execute(delete(host_doubts).where(host_doubts.c.host.in_(settled)))
        new = {host: doubt for host, doubt in self.doubts.items() if self._doubts_held.get(host) != doubt}
        await upsert_rows(connection, host_doubts, [{"host": host, **asdict(doubt)} for host, doubt in new.items()])
        return bool(settled or new or self.confirmed_before)

    async def _save_hosts(self, connection: Connection, version: int) -> bool:
        dirty = False
        for name in self._hosts_held.keys() - self.hosts.keys():
            await connection.execute(delete(cluster_hosts).where(cluster_hosts.c.name == name))
            dirty = True
        for name, entry in self.hosts.items():
            held = self._hosts_held.get(name)
            if held == entry:
                continue
            here = cluster_hosts.c.name == name
            values = {**host_to_row(entry.host), "wanted": entry.wanted, "drained_by": entry.drained_by}
            if held is None:
                values |= {"used_memory_mib": 0, "used_vcpus": 0, "version": version}
                await connection.execute(insert(cluster_hosts).values(**values))
            elif (held.host, held.wanted, held.drained_by) != (entry.host, entry.wanted, entry.drained_by):
                await connection.execute(update(cluster_hosts).where(here).values(version=version, **values))
            memory = entry.used_memory_mib - (held.used_memory_mib if held else 0)
            vcpus = entry.used_vcpus - (held.used_vcpus if held else 0)
            if memory or vcpus:
                await self._use(connection, entry, memory, vcpus)
            dirty = True
        return dirty

    @staticmethod
    async def _use(connection: Connection, entry: HostEntry, memory: int, vcpus: int) -> None:
        """Take or give back places on a host: one UPDATE, which the database itself holds to what is left."""
        places: dict[str, object] = {"host": entry.host.name, "memory": memory, "cpus": vcpus}
        if memory > 0:
            facts = entry.host.facts
            taken = await connection.execute(_TAKE, {**places, "most": facts.memory_mib if facts else 0})
        else:
            taken = await connection.execute(_GIVE_BACK, places)
        if not taken.rowcount:
            raise Unavailable(f"The places of {entry.host.title} are not as they were. It is tried again.")

    async def _save_copies(
        self, connection: Connection, host: str, copies: Sequence[tuple[Image, ImageSpec | None]], version: int
    ) -> bool:
        rows = [
            {
                **copy_to_row(host, image),
                "spec": msgspec.json.encode(spec).decode() if spec else None,
                "gone": False,
            }
            for image, spec in copies
        ]
        changed = await put_rows(connection, cluster_copies, rows, version)
        gone = await connection.execute(
            update(cluster_copies)
            .where(
                cluster_copies.c.host == host,
                not_(cluster_copies.c.gone),
                cluster_copies.c.image.not_in([image.id for image, _ in copies]),
            )
            .values(gone=True, version=version)
        )
        return bool(changed or gone.rowcount)

    async def _save_entries(self, connection: Connection) -> bool:
        new = [entry for id, entry in self.entries.items() if id not in self._entries_held]
        if new:
            await connection.execute(_JOURNAL, [entry_values(one, self._accepted[one.id]) for one in new])
        ended = [entry for id, entry in self._entries_held.items() if self.entries[id] != entry]
        if ended:
            values = [outcome_values(self.entries[entry.id]) for entry in ended]
            await connection.execute(_FINISH, values)
        return bool(new or ended)


_HOSTS = select(cluster_hosts)
_READY_COPIES = select(cluster_copies).where(cluster_copies.c.state == CopyState.READY, not_(cluster_copies.c.gone))
_STARTS = (
    select(func.count())
    .where(cluster_desktops.c.state.in_(STARTING_STATES), cluster_desktops.c.host == cluster_hosts.c.name)
    .scalar_subquery()
)
_HOSTS_AND_STARTS = select(cluster_hosts, _STARTS.label("starting"))
_DESKTOPS = select(cluster_desktops).where(cluster_desktops.c.id.in_(bindparam("ids", expanding=True)))
_ON_HOSTS = select(cluster_desktops).where(
    cluster_desktops.c.host.in_(bindparam("hosts", expanding=True)), cluster_desktops.c.state.in_(THERE)
)
_ENTRIES = select(journal).where(
    or_(
        journal.c.id.in_(bindparam("ids", expanding=True)),
        and_(journal.c.outcome.is_(None), journal.c.desktop.in_(bindparam("about", expanding=True))),
    )
)
_ABOUT_HOSTS = select(journal).where(journal.c.outcome.is_(None), journal.c.desktop.is_(None))
_JOURNAL = insert(journal)
_USED = cluster_hosts.c.used_memory_mib + bindparam("memory", type_=Integer())
_GIVE_BACK = (
    update(cluster_hosts)
    .where(cluster_hosts.c.name == bindparam("host"))
    .values(used_memory_mib=_USED, used_vcpus=cluster_hosts.c.used_vcpus + bindparam("cpus", type_=Integer()))
)
_TAKE = _GIVE_BACK.where(bindparam("most") >= _USED)
_FINISH = (
    update(journal)
    .where(journal.c.id == bindparam("entry"), journal.c.outcome.is_(None))
    .values(outcome=bindparam("ended"), fault_code=bindparam("code"), fault_reason=bindparam("why"))
)


def _host_of(entry: HostEntry | None) -> Host | None:
    return entry.host if entry else None


def _seen_of(placed: Placed | None) -> Desktop | None:
    return placed.seen if placed else None
