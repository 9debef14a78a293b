"""The host's journal: on disk before it says so, many at once, damage set aside, one process alone, epochs."""

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import SetupError, Unavailable
from pupitre.host.journal import Journal, Record
from tests import ROOT

pytestmark = pytest.mark.anyio
SPEC = ImageSpec("plain", "0" * 64, DiskFormat.QCOW2, 256, 1)


def a_record(desktop: str = "d1", state: DesktopState = DesktopState.REQUESTED) -> Record:
    return Record(desktop, 1, DesktopState.RUNNING, state, SPEC, "a reason")


async def test_what_was_put_is_there_again_and_what_was_noted_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep/journal.sqlite")
    await journal.put(a_record("kept"))
    await journal.put(a_record("dropped"))
    await journal.drop("dropped")
    journal.note(a_record("kept", DesktopState.BOOTING))
    assert journal.records["kept"].state is DesktopState.BOOTING
    await journal.close()
    again = Journal(tmp_path / "deep/journal.sqlite")
    assert again.records == {"kept": a_record("kept")}
    await again.close()


async def test_an_older_epoch_is_fenced_off_for_good(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert await journal.raise_epoch(7)
    assert await journal.raise_epoch(7)
    assert not await journal.raise_epoch(6)
    await journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.epoch == 7
    assert list(await asyncio.gather(again.raise_epoch(9), again.raise_epoch(8))) == [True, False]
    assert not await again.raise_epoch(6)
    await again.close()


async def test_concurrent_changes_share_transaction_in_order(tmp_path: Path) -> None:
    """Changes at once share one transaction and keep their order."""
    journal = Journal(tmp_path / "journal.sqlite")
    statements: list[str] = []
    journal._connection.set_trace_callback(statements.append)
    both = asyncio.gather(
        *(journal.put(a_record(str(number))) for number in range(500)),
        *(journal.drop(str(number)) for number in range(100)),
        journal.put(a_record("7")),
    )
    await asyncio.sleep(0)
    assert journal.records == {}  # never ahead of the disk
    await both
    assert [text for text in statements if text == "COMMIT"] == ["COMMIT"]
    expected = {"7", *map(str, range(100, 500))}
    assert set(journal.records) == expected
    await journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert set(again.records) == expected
    await again.close()


async def test_the_event_loop_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    disk = threading.Event()
    busy = asyncio.get_running_loop().run_in_executor(journal._thread, disk.wait)
    put = asyncio.create_task(journal.put(a_record()))
    for _ in range(10):
        await asyncio.sleep(0)  # the loop goes round, the journal's thread does not
    assert not put.done()
    disk.set()
    await busy
    await put
    await journal.close()


async def test_changes_of_one_desktop_are_decided_one_after_the_other(tmp_path: Path) -> None:
    """An order that is being written is not undone by somebody who has not seen it yet."""
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.put(a_record())
    gone = Record("d1", 1, DesktopState.GONE, DesktopState.STOPPING)

    async def order() -> None:
        async with journal.turn("d1"):
            await journal.put(gone)

    async def worker() -> None:
        async with journal.turn("d1"):
            if journal.records["d1"].wanted is DesktopState.RUNNING:
                await journal.put(a_record(state=DesktopState.RUNNING))

    await asyncio.gather(order(), worker())
    assert journal.records == {"d1": gone}
    await journal.close()


@pytest.mark.parametrize("damage", ["no database", "zeroes in the middle"])
async def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    await asyncio.gather(*(journal.put(a_record(f"desktop {number}")) for number in range(200)))
    await journal.close()
    if damage == "no database":
        path.write_bytes(b"not a database" * 1000)
    elif damage == "zeroes in the middle":
        data = path.read_bytes()
        path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    again = Journal(path)
    assert again.records == {}
    await again.put(a_record())
    await again.close()
    assert len(list(tmp_path.glob("journal.damaged-*"))) >= 1
    third = Journal(path)
    assert third.records == {"d1": a_record()}
    await third.close()


@pytest.mark.parametrize("where", ["in the record", "in its key"])
async def test_a_flipped_byte_costs_one_record_and_no_other(tmp_path: Path, where: str) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    await journal.raise_epoch(3)
    names = [f"desktop-{number:03}" for number in range(50)]
    await asyncio.gather(*(journal.put(a_record(name)) for name in names))
    await journal.close()
    data = bytearray(path.read_bytes())
    at = data.index(b'"desktop":"desktop-007"') if where == "in the record" else data.index(b"desktop desktop-007")
    data[at + 15] ^= 0x10
    path.write_bytes(data)

    again = Journal(path)
    assert (set(again.records), again.epoch) == (set(names) - {"desktop-007"}, 3)
    ((kept_aside,),) = again._connection.execute("SELECT count(*) FROM damaged")
    assert kept_aside == 1
    await again.put(a_record("desktop-007"))
    await again.close()
    third = Journal(path)
    assert set(third.records) == set(names)
    await third.close()
    assert list(tmp_path.glob("*damaged*")) == []


async def test_damaged_epoch_does_not_lock_cluster_out(tmp_path: Path) -> None:
    """A flipped byte in the epoch does not lock the cluster out."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    await journal.raise_epoch(41)
    await journal.close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"epoch41", b"epoch91"))
    again = Journal(path)
    assert again.epoch == 0
    assert await again.raise_epoch(42)
    await again.close()


async def test_second_process_is_refused_the_journal(tmp_path: Path) -> None:
    """A second process does not get it and nothing is set aside."""
    journal = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(SetupError, match="Is another `pupitre host` running"):
        Journal(tmp_path / "journal.sqlite")
    await journal.put(a_record())
    await journal.close()
    assert list(tmp_path.glob("*damaged*")) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal.sqlite")


async def test_unwritable_journal_refuses_and_changes_nothing(tmp_path: Path) -> None:
    """A journal that takes no change says so and nothing has changed."""
    journal = Journal(tmp_path / "journal.sqlite")
    journal._connection.execute("PRAGMA query_only = ON")
    refused = await asyncio.gather(
        journal.put(a_record()), journal.raise_epoch(9), journal.drop("d2"), return_exceptions=True
    )
    assert [type(error) for error in refused] == [Unavailable] * 3
    assert (journal.records, journal.epoch) == ({}, 0)
    journal._connection.execute("PRAGMA query_only = OFF")
    await journal.put(a_record())
    assert journal.records == {"d1": a_record()}
    await journal.close()


def test_what_was_acknowledged_outlives_sigkill(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib; from tests.unit.host.test_journal import *\n"
        "async def main():\n"
        "    journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "    for number in range(0, 10**6, 5):\n"
        "        await asyncio.gather(*(journal.put(a_record(str(number + at))) for at in range(5)))\n"
        "        print(number + 4, flush=True)\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "journal.sqlite"
    root = ROOT
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        acknowledged = 0
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 254:
                process.send_signal(signal.SIGKILL)
    journal = Journal(path)
    assert {str(number) for number in range(acknowledged + 1)} <= journal.records.keys()
    journal._thread.shutdown()
    journal._connection.close()
