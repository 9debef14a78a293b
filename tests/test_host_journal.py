"""The host's journal: on disk before it says so, set aside when damaged, one process alone, epochs."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.domain.desktop import DesktopState
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import SetupError, Unavailable
from pupitre.host.journal import Journal, Record

SPEC = ImageSpec("plain", "0" * 64, DiskFormat.QCOW2, 256, 1)


def a_record(desktop: str = "d1", state: DesktopState = DesktopState.REQUESTED) -> Record:
    return Record(desktop, 1, DesktopState.RUNNING, state, SPEC, "a reason")


def test_what_was_put_is_there_again_and_what_was_noted_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep/journal.sqlite")
    journal.put(a_record("kept"))
    journal.put(a_record("dropped"))
    journal.drop("dropped")
    journal.note(a_record("kept", DesktopState.BOOTING))
    assert journal.records["kept"].state is DesktopState.BOOTING
    journal.close()
    again = Journal(tmp_path / "deep/journal.sqlite")
    assert again.records == {"kept": a_record("kept")}
    again.close()


def test_an_older_epoch_is_fenced_off_for_good(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.raise_epoch(7)
    assert journal.raise_epoch(7)
    assert not journal.raise_epoch(6)
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.epoch == 7
    assert not again.raise_epoch(6)
    assert again.raise_epoch(8)
    again.close()


@pytest.mark.parametrize("damage", ["no database", "zeroes in the middle", "an unreadable record"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    for number in range(200):
        journal.put(a_record(f"desktop {number}"))
    if damage == "an unreadable record":
        journal._write("UPDATE desktops SET record = ?", b"{}")
    journal.close()
    if damage == "no database":
        path.write_bytes(b"not a database" * 1000)
    elif damage == "zeroes in the middle":
        data = path.read_bytes()
        path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    again = Journal(path)
    assert again.records == {}
    again.put(a_record())
    again.close()
    assert len(list(tmp_path.glob("journal.damaged-*"))) >= 1
    third = Journal(path)
    assert third.records == {"d1": a_record()}
    third.close()


def test_a_second_process_does_not_get_it_and_nothing_is_set_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(SetupError, match="Is another `pupitre host` running"):
        Journal(tmp_path / "journal.sqlite")
    journal.put(a_record())
    journal.close()
    assert list(tmp_path.glob("*damaged*")) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal.sqlite")


def test_a_journal_that_takes_no_change_says_so_and_nothing_has_changed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable):
        journal.put(a_record())
    with pytest.raises(Unavailable):
        journal.raise_epoch(9)
    assert (journal.records, journal.epoch) == ({}, 0)
    journal.close()


def test_what_was_acknowledged_outlives_sigkill(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from tests.test_host_journal import *\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for number in range(10**6):\n"
        "    journal.put(a_record(str(number))); print(number, flush=True)\n"
    )
    path = tmp_path / "journal.sqlite"
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 50:
                process.send_signal(signal.SIGKILL)
                break
        acknowledged = 50 + len(process.stdout.read().splitlines())
    journal = Journal(path)
    assert {str(number) for number in range(acknowledged + 1)} <= journal.records.keys()
    journal.close()
