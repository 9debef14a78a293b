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
from pupitre.errors import SetupError, Unavailable

log = structlog.get_logger(__name__)

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
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
        """Raises `SetupError` when another process has the journal, or it cannot be made."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
            try:
                self.records, self.epoch = self._read()
            except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
                self._connection.close()
                if isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode & 0xFF not in _DAMAGE:
                    raise
                self._set_aside(str(error))
                self._connection = self._open()
                self.records, self.epoch = self._read()
        except (OSError, sqlite3.Error) as error:
            raise SetupError(
                f"The host's journal {path} cannot be opened: {error}.",
                "Is another `pupitre host` running under this name and home?",
            ) from error

    def put(self, record: Record) -> None:
        """Keep the record; it is on disk when this returns. Raises `Unavailable`; then nothing has changed."""
        body = msgspec.json.encode(record)
        self._write("INSERT OR REPLACE INTO desktops VALUES (?, ?)", record.desktop, body)
        self.records[record.desktop] = record

    def note(self, record: Record) -> None:
        """Keep a step on the way in memory only: after a crash it is found out again."""
        self.records[record.desktop] = record

    def drop(self, desktop: str) -> None:
        """Raises `Unavailable`."""
        self._write("DELETE FROM desktops WHERE desktop = ?", desktop)
        self.records.pop(desktop, None)

    def raise_epoch(self, epoch: int) -> bool:
        """Remember the cluster's epoch; False when ``epoch`` is older than one already heard.

        Raises `Unavailable`.
        """
        if epoch > self.epoch:
            self._write("UPDATE epoch SET value = ?", epoch)
            self.epoch = epoch
        return epoch == self.epoch

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=2)

    def _read(self) -> tuple[dict[str, Record], int]:
        # One process alone: two agents of one host would undo each other's work.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(SCHEMA)
        rows = self._connection.execute("SELECT record FROM desktops").fetchall()
        records = [msgspec.json.decode(row[0], type=Record) for row in rows]
        epoch: int = self._connection.execute("SELECT value FROM epoch").fetchone()[0]
        return {record.desktop: record for record in records}, epoch

    def _write(self, statement: str, *values: object) -> None:
        try:
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise Unavailable(f"The host's journal {self._path} does not take the change: {error}.") from error

    def _set_aside(self, reason: str) -> None:
        aside = self._path.with_suffix(f".damaged-{time.time_ns()}")
        log.error("The host's journal is damaged and is begun anew.", kept_as=str(aside), reason=reason)
        for suffix in ("", "-wal", "-shm"):
            damaged = self._path.with_name(self._path.name + suffix)
            if damaged.exists():
                damaged.rename(aside.with_name(aside.name + suffix))
