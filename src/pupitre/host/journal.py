"""The host's own small journal: what it was ordered, on disk before it says that it has taken it.

A host process that is killed finds here what it was doing, and compares it with what runs. SQLite
with ``synchronous=FULL``, written by a thread of its own: what is put while the disk is at work goes
into the next transaction together, so a hundred orders at once cost one wait for the disk, and the
event loop never waits. Memory is never ahead of the disk, except for steps that are only noted.

Each record carries a checksum. A damaged one is set aside and the others stay; a damaged file is set
aside whole. Guests, overlays and the cluster say what is there.
"""

import asyncio
import sqlite3
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import structlog

from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import ImageSpec
from pupitre.errors import SetupError, Unavailable
from pupitre.timings import JOURNAL_LOCK

log = structlog.get_logger(__name__)

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_EPOCH, _MARKS, _DESKTOP = b"epoch", b"marks", b"desktop "
# Earlier journals had other tables; what they said, guests and cluster say too.
SCHEMA = """
DROP TABLE IF EXISTS desktops;
DROP TABLE IF EXISTS epoch;
CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS damaged (at INTEGER NOT NULL, key BLOB, value BLOB, checksum INTEGER);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A desktop of this host. ``wanted`` is RUNNING or GONE; ``spec`` is None for a guest found without a record.

    ``end_by`` (Unix ms) is until when a guest that shall be gone may take to shut down by itself.
    ``owner`` is known to the cluster; it is kept here for one that has lost it, with the ``proof`` of the order.
    """

    desktop: str
    boot: int
    wanted: DesktopState
    state: DesktopState
    spec: ImageSpec | None = None
    reason: str | None = None
    end_by: int = 0
    owner: str = ""
    proof: str = ""

    def seen(self, state: DesktopState, reason: str | None = None) -> "Record":
        return replace(self, state=state, reason=reason)


@dataclass(frozen=True, slots=True)
class ClusterPositions:
    """Positions of the cluster's changes: as last heard, and as heard from the process before this one.

    ``proof`` is that of the order that said so (see `pupitre.domain.order_proof`).
    ``told``: the cluster process of ``epoch`` has kept a report that says what was heard before it.
    """

    epoch: int = 0
    sequence: int = 0
    before_epoch: int = 0
    before_sequence: int = 0
    told: bool = False
    proof: str = ""
    before_proof: str = ""

    def follow(self, epoch: int, sequence: int, proof: str = "") -> "ClusterPositions":
        """The marks after an order of this or a later epoch."""
        if epoch == self.epoch:
            return self if sequence <= self.sequence else replace(self, sequence=sequence, proof=proof)
        if self.told or not self.before_epoch:
            return ClusterPositions(epoch, sequence, self.epoch, self.sequence, proof=proof, before_proof=self.proof)
        before = (self.before_epoch, self.before_sequence)
        return ClusterPositions(epoch, sequence, *before, proof=proof, before_proof=self.before_proof)


@dataclass(frozen=True, slots=True)
class _Change:
    """One key's new value, None to remove it; ``taken`` is done when it is on disk and in memory."""

    key: bytes
    value: Record | ClusterPositions | int | None
    taken: asyncio.Future[None]


class Journal:
    """All records are held in memory too; only writing touches the disk."""

    def __init__(self, path: Path) -> None:
        """Raises `SetupError` when another process has the journal, or it cannot be made."""
        self.records: dict[str, Record] = {}
        self.epoch = 0
        self.positions = ClusterPositions()
        self._path = path
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._waiting: list[_Change] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
            try:
                self._read()
            except sqlite3.DatabaseError as error:
                self._connection.close()
                if error.sqlite_errorcode & 0xFF not in _DAMAGE:
                    raise
                self._set_aside(str(error))
                self._connection = self._open()
                self._read()
        except (OSError, sqlite3.Error) as error:
            raise SetupError(
                f"The host's journal {path} cannot be opened: {error}.",
                "Is another `pupitre host` running under this name and home?",
            ) from error

    def turn(self, desktop: str) -> asyncio.Lock:
        """Hold it from looking at a desktop's record until its change is put: such changes come one by one."""
        lock = self._turns.get(desktop)
        if lock is None:
            lock = self._turns[desktop] = asyncio.Lock()
        return lock

    async def put(self, record: Record) -> None:
        """Keep the record; it is on disk when this returns. Raises `Unavailable`; then nothing has changed."""
        await self._write(_key(record.desktop), record)

    def note(self, record: Record) -> None:
        """Keep a step on the way in memory only: after a crash it is found out again."""
        self.records[record.desktop] = record

    async def drop(self, desktop: str) -> None:
        """Raises `Unavailable`."""
        await self._write(_key(desktop), None)

    async def raise_epoch(self, epoch: int, sequence: int = 0, proof: str = "") -> bool:
        """Remember the cluster's epoch; False when ``epoch`` is older than one already heard.

        How far its changes stood goes to disk with what is put next. Raises `Unavailable`.
        """
        if epoch > self.epoch:
            self._write_positions(self.positions.follow(epoch, sequence, proof))
            await self._write(_EPOCH, epoch)
        elif epoch == self.epoch:
            self._write_positions(self.positions.follow(epoch, sequence, proof))
        return epoch == self.epoch

    def told(self, epoch: int) -> None:
        """The cluster process of ``epoch`` knows what was heard before it."""
        if epoch == self.positions.epoch:
            self._write_positions(replace(self.positions, told=True))

    def _write_positions(self, positions: ClusterPositions) -> None:
        if positions == self.positions or positions.epoch < self.positions.epoch:
            return
        self.positions = positions
        # Nobody waits for it: it is on disk no later than what is put after it.
        self._queue(_MARKS, positions).add_done_callback(lambda taken: taken.cancelled() or taken.exception())

    async def close(self) -> None:
        """Close the journal; what was put before is on disk when this returns."""
        if self._writing:
            await asyncio.gather(self._writing, return_exceptions=True)
        self._thread.shutdown()
        self._connection.close()

    # How it is written

    async def _write(self, key: bytes, value: Record | int | None) -> None:
        await self._queue(key, value)

    def _queue(self, key: bytes, value: Record | ClusterPositions | int | None) -> "asyncio.Future[None]":
        change = _Change(key, value, asyncio.get_running_loop().create_future())
        self._waiting.append(change)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="journal")
        return change.taken

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                changes, self._waiting = self._waiting, []
                failure: Unavailable | None = None
                try:
                    await loop.run_in_executor(self._thread, self._commit, changes)
                except sqlite3.Error as error:
                    failure = Unavailable(f"The host's journal {self._path} does not take the change: {error}.")
                for change in changes:
                    if failure is None:
                        self._apply(change)
                    if not change.taken.done():
                        change.taken.set_exception(failure) if failure else change.taken.set_result(None)
        finally:
            self._writing = None

    def _apply(self, change: _Change) -> None:
        if isinstance(change.value, int):
            self.epoch = max(self.epoch, change.value)
        elif isinstance(change.value, ClusterPositions):
            pass  # in memory already
        elif change.value is None:
            self.records.pop(change.key.removeprefix(_DESKTOP).decode(), None)
        else:
            self.records[change.value.desktop] = change.value

    def _commit(self, changes: list[_Change]) -> None:
        """Write the changes. Runs in the journal's own thread."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                if change.value is None:
                    self._connection.execute("DELETE FROM kept WHERE key = ?", (change.key,))
                else:
                    self._insert(change.key, change.value)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _insert(self, key: bytes, kept: Record | ClusterPositions | int) -> None:
        value = msgspec.json.encode(kept)
        row = (key, value, _checksum(key, value))
        self._connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", row)

    # How it is read

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=JOURNAL_LOCK)

    def _read(self) -> None:
        # One process alone: two agents of one host would undo each other's work.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(SCHEMA)
        self.records, self.epoch, self.positions = {}, 0, ClusterPositions()
        rows = self._connection.execute("SELECT key, value, checksum FROM kept").fetchall()
        damaged = [row for row in rows if not self._load(*row)]
        if damaged:
            log.error("journal_records_damaged", count=len(damaged))
            self._keep_without(damaged)

    def _load(self, key: object, value: object, checksum: object) -> bool:
        """Take a row into memory; False when it is damaged."""
        if not (isinstance(key, bytes) and isinstance(value, bytes) and checksum == _checksum(key, value)):
            return False
        try:
            if key == _EPOCH:
                self.epoch = msgspec.json.decode(value, type=int)
            elif key == _MARKS:
                self.positions = msgspec.json.decode(value, type=ClusterPositions)
            else:
                record = msgspec.json.decode(value, type=Record)
                self.records[record.desktop] = record
        except msgspec.MsgspecError:
            return False  # another version's
        return True

    def _keep_without(self, damaged: list[tuple[object, ...]]) -> None:
        """Write the table anew: what is damaged may not be found by its key."""
        at = time.time_ns()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO damaged VALUES (?, ?, ?, ?)", [(at, *row) for row in damaged])
        self._connection.execute("DELETE FROM kept")
        self._insert(_EPOCH, self.epoch)
        self._insert(_MARKS, self.positions)
        for desktop, record in self.records.items():
            self._insert(_key(desktop), record)
        self._connection.execute("COMMIT")

    def _set_aside(self, reason: str) -> None:
        aside = self._path.with_suffix(f".damaged-{time.time_ns()}")
        log.error("journal_damaged", kept_as=str(aside), reason=reason)
        for suffix in ("", "-wal", "-shm"):
            damaged = self._path.with_name(self._path.name + suffix)
            if damaged.exists():
                damaged.rename(aside.with_name(aside.name + suffix))


def _key(desktop: str) -> bytes:
    return _DESKTOP + desktop.encode()


def _checksum(key: bytes, value: bytes) -> int:
    """CRC-32: notices any damage of up to four bytes side by side."""
    return zlib.crc32(value, zlib.crc32(key))
