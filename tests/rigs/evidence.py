"""Gathers the evidence that `tests.rigs.history` judges: databases, journals, disks, ledgers, processes.

Only reads. A host's journal is its process's alone, so a copy of it is read.
"""

import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
from sqlalchemy import Table, select

from pupitre.config import DatabaseName, Settings
from pupitre.domain.command import CommandKind, CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.host.agent import journal_path
from pupitre.host.hypervisor.overlays import SUFFIX
from pupitre.host.hypervisor.selection import WITH_DISKS
from pupitre.host.journal import Journal
from pupitre.host.simulation.guest_log import SimulatedGuestLog, guest_log_path
from pupitre.store import schema
from pupitre.store.rows import AnyRow
from pupitre.store.sql.engine import open_database
from tests.rigs.history import CommandSeen, EntrySeen, Evidence, HostSeen, PlacedSeen, ShownSeen

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def gather(
    settings: Settings,
    hosts: Collection[str],
    *,
    answered: Collection[str] = (),
    told: Mapping[str, CommandState] | None = None,
    lasting: bool = False,
) -> Evidence:
    """All that is known of the instance ``settings`` and of these hosts of it, all under its home."""
    commands, audit = await _rows(settings, "commands", schema.commands, schema.audit)
    shown, _ = await _rows(settings, "status", schema.desktops, schema.status_counter)
    journal, placed, used = await _rows(
        settings, "cluster", schema.journal, schema.cluster_desktops, schema.cluster_hosts
    )
    return Evidence(
        commands={row.id: _command(row) for row in commands},
        audit=tuple((row.command, row.outcome) for row in audit if row.command),
        journal={row.id: EntrySeen(_state(row.outcome), row.reported) for row in journal},
        placed={row.id: _placed(row) for row in placed},
        shown={row.id: ShownSeen(row.host, DesktopState(row.state), row.boot) for row in shown},
        used={row.name: (row.used_memory_mib, row.used_vcpus) for row in used},
        hosts={name: await host(settings, name) for name in hosts},
        answered=frozenset(answered),
        told=dict(told or {}),
        lasting=lasting,
    )


async def host(settings: Settings, name: str) -> HostSeen:
    """State of the host ``name``."""
    folder = settings.home / "hosts" / name
    seen = HostSeen(
        overlays=frozenset(path.name.removesuffix(SUFFIX) for path in (folder / "overlays").glob(f"[!.]*{SUFFIX}")),
        records=await _records(journal_path(settings.model_copy(update={"host_name": name}))),
    )
    if not settings.hypervisor.startswith("simulated://"):
        return replace(seen, guests=tuple(_emulated({*(seen.overlays or ()), *(seen.records or ())})))
    if not settings.hypervisor.endswith(WITH_DISKS):
        seen = replace(seen, overlays=None)
    running: set[str] = set()
    ran: set[str] = set()
    restarted: set[str] = set()
    for line in SimulatedGuestLog(guest_log_path(folder)).entries():
        if line.kind == "end":
            running.discard(line.desktop)
            continue
        if line.desktop in running:
            restarted.add(line.desktop)
        running.add(line.desktop)
        ran.add(line.desktop)
    return replace(seen, guests=tuple(sorted(running)), ran=frozenset(ran), restarted=frozenset(restarted))


def emulators() -> dict[str, list[psutil.Process]]:
    """All QEMU processes of this machine by the desktop that they name."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        if not (process.info["name"] or "").startswith("qemu-system") or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        line = process.info["cmdline"] or []
        for desktop in {match for word in line for match in _ID.findall(word)}:
            found.setdefault(desktop, []).append(process)
    return found


def _emulated(desktops: Collection[str]) -> list[str]:
    """Those of these desktops for which there is a QEMU, once for each."""
    return [desktop for desktop, processes in emulators().items() if desktop in desktops for _ in processes]


async def _rows(settings: Settings, name: DatabaseName, *tables: Table) -> list[list[AnyRow]]:
    database = open_database(settings, "owner", name)
    try:
        async with database.read() as connection:
            return [list(await connection.execute(select(table))) for table in tables]
    finally:
        await database.close()


def _command(row: AnyRow) -> CommandSeen:
    return CommandSeen(
        id=row.id,
        kind=CommandKind(row.kind),
        desktop=row.desktop,
        state=CommandState(row.state),
        fault=row.fault_code,
        late=_state(row.late),
        abandon=row.abandon,
    )


def _placed(row: AnyRow) -> PlacedSeen:
    return PlacedSeen(
        host=row.host,
        state=DesktopState(row.state),
        wanted=DesktopState(row.wanted),
        boot=row.boot,
        reason=row.reason,
        memory_mib=row.memory_mib,
        vcpus=row.vcpus,
    )


def _state(value: str | None) -> CommandState | None:
    return CommandState(value) if value else None


async def _records(path: Path) -> dict[str, DesktopState] | None:
    """States that a host's journal wants, by desktop; None without a journal that can be read."""
    if not path.exists():
        return None
    with tempfile.TemporaryDirectory(prefix="pupitre-evidence-") as folder:
        if not _copied(path, Path(folder)):
            return None
        journal = Journal(Path(folder) / path.name)
        await journal.close()
    return {record.desktop: record.wanted for record in journal.records.values()}


def _copied(path: Path, folder: Path) -> bool:
    """Copy a database with its log; False when it was written to meanwhile, at each of several tries."""
    files = [path, path.with_name(path.name + "-wal")]

    def look() -> list[tuple[int, int]]:
        return [(file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists()]

    for _ in range(20):
        before = look()
        for file in files:
            if file.exists():
                shutil.copy(file, folder / file.name)
        if look() == before:
            return True
    return False
