"""The host's own small journal: what it was ordered, on disk before it says that it has taken it.

A host process that is killed finds here what it was doing, and compares it with
what runs. SQLite with ``synchronous=FULL``; a damaged file is set aside and begun
anew, since guests and overlays themselves say what is there.
"""

import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import ImageSpec

log = structlog.get_logger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS desktops (desktop TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epoch (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL);
INSERT OR IGNORE INTO epoch VALUES (1, 0);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A desktop of this host. ``wanted`` is RUNNING or GONE; ``spec`` is None for a guest found without a record."""

    desktop: str
    boot: int
    wanted: DesktopState
    state: DesktopState
    spec: ImageSpec | None = None
    reason: str | None = None

    def seen(self, state: DesktopState, reason: str | None = None) -> "Record":
        return replace(self, state=state, reason=reason)


class Journal:
    """All records are held in memory too; only writing touches the disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open(path)
            rows = self._connection.execute("SELECT record FROM desktops").fetchall()
            records = [msgspec.json.decode(row[0], type=Record) for row in rows]
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            aside = path.with_suffix(f".damaged-{int(time.time())}")
            log.error("The host's journal is damaged and is begun anew.", kept_as=str(aside), reason=str(error))
            for suffix in ("", "-wal", "-shm"):
                damaged = path.with_name(path.name + suffix)
                if damaged.exists():
                    damaged.rename(aside.with_name(aside.name + suffix))
            self._connection = self._open(path)
            records = []
        self.records: dict[str, Record] = {record.desktop: record for record in records}
        self.epoch: int = self._connection.execute("SELECT value FROM epoch").fetchone()[0]

    def put(self, record: Record) -> None:
        """Keep the record; it is on disk when this returns."""
        body = msgspec.json.encode(record)
        self._connection.execute("INSERT OR REPLACE INTO desktops VALUES (?, ?)", (record.desktop, body))
        self.records[record.desktop] = record

    def note(self, record: Record) -> None:
        """Keep a step on the way in memory only: after a crash it is found out again."""
        self.records[record.desktop] = record

    def drop(self, desktop: str) -> None:
        self._connection.execute("DELETE FROM desktops WHERE desktop = ?", (desktop,))
        self.records.pop(desktop, None)

    def raise_epoch(self, epoch: int) -> bool:
        """Remember the cluster's epoch; False when ``epoch`` is older than one already heard."""
        if epoch > self.epoch:
            self._connection.execute("UPDATE epoch SET value = ?", (epoch,))
            self.epoch = epoch
        return epoch == self.epoch

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        return connection
