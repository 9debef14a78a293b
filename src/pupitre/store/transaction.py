"""What one transaction on the database ``cluster`` sees and changes: plain values in memory.

`Transaction.load` gets what decisions need, from what is `Known` or else from the database; they
decide; `Transaction.save` writes what they changed, and `Transaction.keep` has it known.
Many decisions may share one, each seeing what those before it did.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import uuid_utils
from sqlalchemy import Integer, bindparam, delete, insert, not_, select, update

from pupitre.domain.command import CommandKind, CommandState, Fault, desktop_of
from pupitre.domain.desktop import Desktop
from pupitre.domain.host import Host
from pupitre.domain.image import CopyState, Image
from pupitre.domain.overhead import guest_overhead_mib
from pupitre.domain.placement import Candidate
from pupitre.domain.status import Rows
from pupitre.domain.warning import set_aside_by
from pupitre.errors import Unavailable
from pupitre.store.cluster_rows import (
    Doubt,
    Entry,
    HostEntry,
    Note,
    Placed,
    UnknownGuest,
    desktop_values,
    entry_from_row,
    entry_values,
    outcome_values,
    placed_from_row,
)
from pupitre.store.known import STARTING, Copies, Known
from pupitre.store.rows import copy_to_row, host_to_row
from pupitre.store.schema import (
    cluster_copies,
    cluster_desktops,
    cluster_hosts,
    epochs,
    host_doubts,
    journal,
    notes,
    unknown_guests,
)
from pupitre.store.sql.dialect import Connection
from pupitre.store.sql.upsert import upsert_rows
from pupitre.store.sql.versioned import chunks, has_key, put_rows

KNOWS_MORE = "set aside: it says that it knows more than the cluster (pupitre cluster confirm)"
MOST_SUBJECT, MOST_DETAIL = 255, 1000
"""Characters of a note."""

Outcomes = list[tuple[Entry, Rows]]
"""Commands that have ended, each with the rows that it was about as they were then."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a decision has to see besides all hosts and images: it is there, or known not to be.

    ``desktops`` come with their open commands; ``hosts`` are hosts of which every desktop is needed;
    ``host_commands`` says whether open commands about hosts matter. ``new`` are ids of commands and desktops
    that the decision writes if it does not see them: these need not be looked for, as their keys would conflict.
    """

    commands: frozenset[str] = frozenset()
    desktops: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    host_commands: bool = False
    new: frozenset[str] = frozenset()

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.commands | other.commands,
            self.desktops | other.desktops,
            self.hosts | other.hosts,
            self.host_commands or other.host_commands,
            self.new | other.new,
        )


class Transaction:
    """What decisions see and change: plain values in memory, read before and written after them."""

    def __init__(
        self,
        known: Known | None = None,
        doubts: Mapping[str, Doubt] | None = None,
        unknown: Mapping[tuple[str, str], UnknownGuest] | None = None,
    ) -> None:
        self._known = known = known or Known()
        self.doubts: dict[str, Doubt] = dict(doubts or {})
        self._doubts_held = dict(self.doubts)
        self.unknown = dict(unknown or {})
        self._unknown_held = dict(self.unknown)
        self.confirmed_before = 0
        self._repeated: set[str] = set()
        self.entries: dict[str, Entry] = {}
        self.desktops: dict[str, Placed] = {}
        self.hosts: dict[str, HostEntry] = dict(known.hosts)
        self.images: dict[str, dict[str, Image]] = dict(known.images)
        self.starting = known.starting.copy()
        self._entries_held: dict[str, Entry] = {}
        self._desktops_held: dict[str, Placed] = {}
        self._hosts_held = known.hosts
        self._accepted: dict[str, int] = {}
        self._copies: dict[str, Copies] = {}
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
                if one.seen.state in STARTING:
                    self.starting[host.host.name] += sign

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
        self.doubts.pop(name, None)
        self.unknown = {key: guest for key, guest in self.unknown.items() if key[0] != name}
        self.put_copies(name, [])

    def put_copies(self, host: str, copies: Copies) -> None:
        """Replace the copies of one host; those not named are marked gone."""
        self._copies[host] = copies
        self.images[host] = {image.id: image for image, _ in copies if image.state is CopyState.READY}

    def image(self, image_id: str) -> Image | None:
        """The image as a host has it ready; of several, as it was published last."""
        found = [images[image_id] for images in self.images.values() if image_id in images]
        return max(found, key=lambda image: image.since, default=None)

    def overhead(self, host: str, image: str) -> int:
        """Memory (MiB) that a guest of ``image`` takes on ``host`` beyond its own."""
        facts = self.hosts[host].host.facts if host in self.hosts else None
        spec = self._known.specs.get((host, image))
        return guest_overhead_mib(facts.accelerator if facts else "", spec.video if spec else "")

    def candidates(self, image: str, *, overcommit: float) -> list[Candidate]:
        """The snapshot for the placement of a desktop of ``image``."""
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
                starting=self.starting[entry.host.name],
                label=entry.host.title,
                overhead_mib=self.overhead(entry.host.name, image),
                over_books_mib=entry.host.facts.over_books_mib if entry.host.facts else 0,
                aside=KNOWS_MORE if entry.host.name in self.doubts else _why_aside(entry.host),
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

    async def load(self, connection: Connection, needs: Needs, *, search: bool = False) -> None:
        """``search``: look for what `Needs.new` names as well."""
        known, taken_for_new = self._known, frozenset() if search else needs.new
        self.desktops = {id: known.desktops[id] for id in needs.desktops if id in known.desktops}
        self.desktops |= {placed.seen.id: placed for placed in known.on(needs.hosts)}
        found = [known.entries[id] for id in needs.commands if id in known.entries]
        for desktop in needs.desktops | self.desktops.keys():
            found += known.about(desktop)
        if needs.host_commands:
            found += known.about(None)
        if unknown := needs.desktops - self.desktops.keys() - taken_for_new:
            for row in await connection.execute(_DESKTOPS, {"ids": list(unknown)}):
                self.desktops[row.id] = placed_from_row(row)
        if unknown := needs.commands - {entry.id for entry in found} - taken_for_new:
            found += map(entry_from_row, await connection.execute(_ENTRIES, {"ids": list(unknown)}))
        self.entries = {entry.id: entry for entry in sorted(found, key=lambda entry: entry.id)}
        self._entries_held, self._desktops_held = dict(self.entries), dict(self.desktops)

    def keep(self, version: int) -> None:
        """It is committed as ``version``: what it changed is known from here on."""
        known = self._known
        known.version = version
        known.hosts, known.images, known.starting = self.hosts, self.images, self.starting
        known.put_desktops(self._desktops_changed)
        known.put_entries(entry for id, entry in self.entries.items() if self._entries_held.get(id) != entry)
        for host, copies in self._copies.items():
            known.put_specs(host, copies)

    @property
    def _desktops_changed(self) -> list[Placed]:
        return [placed for id, placed in self.desktops.items() if self._desktops_held.get(id) != placed]

    async def save(self, connection: Connection, version: int) -> bool:
        """Write what has changed; False when nothing has. A row that stays as it is keeps its version."""
        changed = await self._save_desktops(connection, version)
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

    async def _save_desktops(self, connection: Connection, version: int) -> bool:
        changed = self._desktops_changed
        rows = [{**desktop_values(one), "version": version} for one in changed]
        new = [row for row, one in zip(rows, changed, strict=True) if one.seen.id not in self._desktops_held]
        if new:  # not over one that is there after all
            await connection.execute(_PLACE, new)
        if len(new) < len(rows):
            held = [row for row, one in zip(rows, changed, strict=True) if one.seen.id in self._desktops_held]
            await upsert_rows(connection, cluster_desktops, held)
        return bool(rows)

    async def _save_doubts(self, connection: Connection) -> bool:
        if self.confirmed_before:
            later = epochs.c.confirmed < self.confirmed_before
            await connection.execute(update(epochs).where(later).values(confirmed=self.confirmed_before))
        settled = self._doubts_held.keys() - self.doubts.keys()
        if settled:
            await connection.execute(delete(host_doubts).where(host_doubts.c.host.in_(settled)))
        new = {host: doubt for host, doubt in self.doubts.items() if self._doubts_held.get(host) != doubt}
        await upsert_rows(connection, host_doubts, [{"host": host, **asdict(doubt)} for host, doubt in new.items()])
        unknown = await self._save_unknown(connection)
        return bool(settled or new or self.confirmed_before or unknown)

    async def _save_unknown(self, connection: Connection) -> bool:
        if self.unknown == self._unknown_held:
            return False
        over = sorted(self._unknown_held.keys() - self.unknown.keys())
        for some in chunks(over):
            await connection.execute(delete(unknown_guests).where(has_key(unknown_guests, some)))
        new = [asdict(guest) for key, guest in self.unknown.items() if self._unknown_held.get(key) != guest]
        await upsert_rows(connection, unknown_guests, new)
        return True

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
            taken = await connection.execute(
                _TAKE, {**places, "most": facts.memory_mib - facts.over_books_mib if facts else 0}
            )
        else:
            taken = await connection.execute(_GIVE_BACK, places)
        if not taken.rowcount:
            raise Unavailable(f"The places of {entry.host.title} are not as they were. It is tried again.")

    async def _save_copies(self, connection: Connection, host: str, copies: Copies, version: int) -> bool:
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


_DESKTOPS = select(cluster_desktops).where(cluster_desktops.c.id.in_(bindparam("ids", expanding=True)))
_ENTRIES = select(journal).where(journal.c.id.in_(bindparam("ids", expanding=True)))
_PLACE = insert(cluster_desktops)
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


def _why_aside(host: Host) -> str:
    warning = set_aside_by(host.warnings)
    return f"set aside ({warning.code.replace('_', ' ')})" if warning else ""


def _host_of(entry: HostEntry | None) -> Host | None:
    return entry.host if entry else None


def _seen_of(placed: Placed | None) -> Desktop | None:
    return placed.seen if placed else None
