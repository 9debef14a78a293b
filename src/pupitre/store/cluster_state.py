"""State of the cluster, from the database ``cluster`` and back: loaded whole, saved as the rows that changed."""

from dataclasses import asdict, replace
from functools import lru_cache

import msgspec
import uuid_utils
from sqlalchemy import Integer, bindparam, delete, insert, not_, select, update

from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import CopyState, ImageSpec
from pupitre.errors import Unavailable
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.state import (
    AuditEvent,
    ClusterState,
    Copies,
    ReadSet,
    RegisteredHost,
)
from pupitre.store import restore_conflicts
from pupitre.store.cluster_rows import (
    command_from_row,
    desktop_values,
    journal_values,
    outcome_values,
    placed_from_row,
)
from pupitre.store.rows import copy_to_row, host_from_row, host_to_row, image_from_row
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


async def load(connection: Connection, version: int) -> ClusterState:
    """The state as of ``version``, in a transaction that keeps others from writing."""
    state = ClusterState(version)
    for row in await connection.execute(_HOSTS):
        state.hosts[row.name] = RegisteredHost(
            host_from_row(row), row.wanted, row.drained_by, row.used_memory_mib, row.used_vcpus
        )
    for row in await connection.execute(_COPIES):
        state.specs[row.host, row.image] = _spec(row.spec) if row.spec else None
        if row.state == CopyState.READY and not row.gone:
            state.images.setdefault(row.host, {})[row.image] = image_from_row(row)
    state.put_desktops(placed_from_row(row) for row in await connection.execute(_LIVE_DESKTOPS))
    state.count_starting()
    state.put_commands(command_from_row(row) for row in await connection.execute(_OPEN_COMMANDS))
    await load_conflicts(connection, state)
    return state


async def load_conflicts(connection: Connection, state: ClusterState) -> None:
    """Have the state take what an administrator has confirmed meanwhile."""
    state.confirmed = int((await connection.execute(select(epochs.c.confirmed))).scalar_one())
    state.conflicts = await restore_conflicts.read_conflicts(connection)
    state.unknown_guests = await restore_conflicts.read_unknown_guests(connection)


async def begin_changes(
    connection: Connection, state: ClusterState, reads: ReadSet, *, search: bool = False
) -> Changes:
    """Changes that see what ``reads`` names. ``search``: look for what `ReadSet.new` names as well."""
    new = frozenset() if search else reads.new
    desktops = {id: state.desktops[id] for id in reads.desktops if id in state.desktops}
    desktops |= {placed.seen.id: placed for placed in state.on(reads.hosts)}
    commands = [state.commands[id] for id in reads.commands if id in state.commands]
    for desktop in reads.desktops | desktops.keys():
        commands += state.about(desktop)
    if reads.host_commands:
        commands += state.about(None)
    if missing := reads.desktops - desktops.keys() - new:
        for row in await connection.execute(_DESKTOPS, {"ids": list(missing)}):
            desktops[row.id] = placed_from_row(row)
    if missing := reads.commands - {command.id for command in commands} - new:
        commands += map(command_from_row, await connection.execute(_COMMANDS, {"ids": list(missing)}))
    return Changes(state, commands=commands, desktops=desktops.values())


async def save(connection: Connection, changes: Changes, version: int) -> bool:
    """Write what has changed; False when nothing has. A row that stays as it is keeps its version."""
    wrote = [await _save_desktops(connection, changes, version), await _save_hosts(connection, changes, version)]
    for host, copies in changes.copies.items():
        wrote.append(await _save_copies(connection, host, copies, version))
    wrote += [await _save_commands(connection, changes), await _save_conflicts(connection, changes)]
    if changes.repeated:
        await connection.execute(update(journal).where(journal.c.id.in_(changes.repeated)).values(reported=False))
    if changes.audit_events:
        events = [_identified(event) for event in changes.audit_events.values()]
        await upsert_rows(connection, notes, [asdict(event) for event in events])
    return any(wrote) or bool(changes.repeated or changes.audit_events)


def _identified(event: AuditEvent) -> AuditEvent:
    return event if event.id else replace(event, id=str(uuid_utils.uuid7()))


async def _save_desktops(connection: Connection, changes: Changes, version: int) -> bool:
    changed = changes.changed_desktops
    rows = [{**desktop_values(one), "version": version} for one in changed]
    new = [row for row, one in zip(rows, changed, strict=True) if one.seen.id not in changes.old_desktops]
    if new:  # not over one that is there after all
        await connection.execute(_PLACE, new)
    if len(new) < len(rows):
        held = [row for row, one in zip(rows, changed, strict=True) if one.seen.id in changes.old_desktops]
        await upsert_rows(connection, cluster_desktops, held)
    return bool(rows)


async def _save_conflicts(connection: Connection, changes: Changes) -> bool:
    if changes.confirmed_before:
        later = epochs.c.confirmed < changes.confirmed_before
        await connection.execute(update(epochs).where(later).values(confirmed=changes.confirmed_before))
    settled = changes.old_conflicts.keys() - changes.conflicts.keys()
    if settled:
        await connection.execute(delete(host_doubts).where(host_doubts.c.host.in_(settled)))
    new = {
        host: conflict for host, conflict in changes.conflicts.items() if changes.old_conflicts.get(host) != conflict
    }
    await upsert_rows(connection, host_doubts, [{"host": host, **asdict(conflict)} for host, conflict in new.items()])
    unknown = await _save_unknown_guests(connection, changes)
    return bool(settled or new or changes.confirmed_before or unknown)


async def _save_unknown_guests(connection: Connection, changes: Changes) -> bool:
    if changes.unknown_guests == changes.old_unknown_guests:
        return False
    over = sorted(changes.old_unknown_guests.keys() - changes.unknown_guests.keys())
    for some in chunks(over):
        await connection.execute(delete(unknown_guests).where(has_key(unknown_guests, some)))
    new = [
        asdict(guest) for key, guest in changes.unknown_guests.items() if changes.old_unknown_guests.get(key) != guest
    ]
    await upsert_rows(connection, unknown_guests, new)
    return True


async def _save_hosts(connection: Connection, changes: Changes, version: int) -> bool:
    dirty = False
    for name in changes.old_hosts.keys() - changes.hosts.keys():
        await connection.execute(delete(cluster_hosts).where(cluster_hosts.c.name == name))
        dirty = True
    for name, registered in changes.hosts.items():
        old = changes.old_hosts.get(name)
        if old == registered:
            continue
        here = cluster_hosts.c.name == name
        values = {**host_to_row(registered.host), "wanted": registered.wanted, "drained_by": registered.drained_by}
        if old is None:
            values |= {"used_memory_mib": 0, "used_vcpus": 0, "version": version}
            await connection.execute(insert(cluster_hosts).values(**values))
        elif (old.host, old.wanted, old.drained_by) != (registered.host, registered.wanted, registered.drained_by):
            await connection.execute(update(cluster_hosts).where(here).values(version=version, **values))
        memory = registered.used_memory_mib - (old.used_memory_mib if old else 0)
        vcpus = registered.used_vcpus - (old.used_vcpus if old else 0)
        if memory or vcpus:
            await _use(connection, registered, memory, vcpus)
        dirty = True
    return dirty


async def _use(connection: Connection, registered: RegisteredHost, memory: int, vcpus: int) -> None:
    """Take or give back places on a host: one UPDATE, which the database itself holds to what is left."""
    places: dict[str, object] = {"host": registered.host.name, "memory": memory, "cpus": vcpus}
    if memory > 0:
        facts = registered.host.facts
        taken = await connection.execute(
            _TAKE, {**places, "most": facts.memory_mib - facts.over_books_mib if facts else 0}
        )
    else:
        taken = await connection.execute(_GIVE_BACK, places)
    if not taken.rowcount:
        raise Unavailable(f"The places of {registered.host.title} are not as they were. It is tried again.")


async def _save_copies(connection: Connection, host: str, copies: Copies, version: int) -> bool:
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


async def _save_commands(connection: Connection, changes: Changes) -> bool:
    new = [command for id, command in changes.commands.items() if id not in changes.old_commands]
    if new:
        await connection.execute(_JOURNAL, [journal_values(one, changes.accepted[one.id]) for one in new])
    ended = [command for id, command in changes.old_commands.items() if changes.commands[id] != command]
    if ended:
        values = [outcome_values(changes.commands[command.id]) for command in ended]
        await connection.execute(_FINISH, values)
    return bool(new or ended)


_HOSTS = select(cluster_hosts)
_COPIES = select(cluster_copies)
_LIVE_DESKTOPS = select(cluster_desktops).where(
    cluster_desktops.c.state.in_(sorted(frozenset(DesktopState) - {DesktopState.GONE}))
)
_OPEN_COMMANDS = select(journal).where(journal.c.outcome.is_(None))
_DESKTOPS = select(cluster_desktops).where(cluster_desktops.c.id.in_(bindparam("ids", expanding=True)))
_COMMANDS = select(journal).where(journal.c.id.in_(bindparam("ids", expanding=True)))
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


@lru_cache
def _spec(text: str) -> ImageSpec:
    return msgspec.json.decode(text, type=ImageSpec)
