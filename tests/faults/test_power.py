"""Fault 9: the power fails. Whatever was answered is on disk, at every instant at which it fails.

A machine of its own (QEMU) writes as Pupitre does. Its power is cut again and again: while its processors
stand still, its disk is copied as it is; what was only in its memory is lost. At last QEMU is killed.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pupitre.host.journal import Journal
from pupitre.images.cpio import Archive
from pupitre.images.programs import find
from pupitre.images.store import ImageStore
from tests import ROOT
from tests.rigs import power_loss_writer
from tests.rigs.qemu_guest import Machine

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

LOSSES = int(os.environ.get("PUPITRE_POWER_LOSSES", "40"))
BOOT, BETWEEN = 40.0, (0.02, 0.15)
"""Seconds that the first word may take, and from one loss to the next."""
INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/lib/modules/$module.ko"; done < /lib/modules/order
mount -t ext4 -o ro /dev/vda /root
mount -t ext4 -o noatime /dev/vdb /root/data
mount -o move /dev /root/dev
mount -t proc proc /root/proc
exec < /root/dev/null > /root/dev/ttyS0 2>&1
exec env %s -m tests.rigs.power_loss_writer /data
"""


@dataclass
class Told:
    """What the machine has said is on disk."""

    commands: set[str] = field(default_factory=set)
    boots: dict[str, int] = field(default_factory=dict)
    careless: int = 0

    def hear(self, lines: list[bytes]) -> None:
        for line in lines:
            match line.decode().split():
                case ["commands", id]:
                    self.commands.add(id)
                case ["journal", desktop, boot]:
                    self.boots[desktop] = int(boot)
                case ["careless", number]:
                    self.careless = int(number)
                case _:
                    raise AssertionError(line)


def disk(folder: Path, path: Path, mib: int) -> Path:
    """An ext4 file system of a folder."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    mke2fs = str(find("mke2fs"))
    subprocess.run(
        [mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d", folder, path], check=True
    )
    return path


def program(folder: Path) -> tuple[Path, str]:
    """A disk with the interpreter and all that `tests.rigs.power_loss_writer` needs; how to call it there."""
    trial, root = folder / "trial", folder / "program"
    trial.mkdir()
    power_loss_writer.prepare(trial)
    command = [sys.executable, "-m", "tests.rigs.power_loss_writer", str(trial), "3"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    for name in done.stdout.splitlines()[-1].split():
        path = Path(name)
        names = [path]
        if ".so" in path.name:  # it is asked for by another name
            names += [other for other in path.parent.glob("*.so*") if other.is_symlink() and other.resolve() == path]
        for one in names:
            copy(path, root / one.relative_to("/"))
        if path.name.startswith("ld-linux"):
            copy(path, root / "lib64" / path.name)
    for empty in ("data", "dev", "proc", "tmp"):
        (root / empty).mkdir(exist_ok=True)
    libraries = {str(path.parent.relative_to(root)) for path in root.rglob("*.so*")}
    paths = ":".join(path for path in sys.path if path) + f":{ROOT}"
    environment = f"LD_LIBRARY_PATH={':'.join(f'/{path}' for path in sorted(libraries))} PYTHONPATH={paths}"
    return disk(root, folder / "program.raw", 512), f"{environment} chroot /root {Path(sys.executable).resolve()}"


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


@pytest.fixture
def machine(tmp_path: Path, images: ImageStore) -> Iterator[tuple[Machine, Path]]:
    """It has begun to write; and its disk."""
    data = tmp_path / "data"
    data.mkdir()
    power_loss_writer.prepare(data)
    drive = disk(data, tmp_path / "data.raw", 96)
    program_drive, command = program(tmp_path)
    spec = images.spec("tiny")
    assert spec.kernel
    assert spec.initrd
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as out:
        out.write(images.blob(spec.initrd).read_bytes())
        archive = Archive(out)  # a second archive adds to the first
        archive.file("power", (INIT % command).encode(), 0o755)
        archive.close()
    arguments: list[str | Path] = [
        "-m", "512", "-smp", "1", "-kernel", images.blob(spec.kernel), "-initrd", initrd,
        "-append", "console=ttyS0 quiet loglevel=1 rdinit=/power mitigations=off random.trust_cpu=on",
        "-drive", f"file={program_drive},format=raw,if=virtio,readonly=on",
        "-drive", f"file={drive},format=raw,if=virtio",
    ]  # fmt: skip
    with Machine(arguments) as made:
        yield made, drive


def recovered(drive: Path, folder: Path) -> Path:
    """What is on the disk when the machine is switched on again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    checked = subprocess.run([str(find("e2fsck")), "-fy", drive], capture_output=True, text=True, check=False)
    assert checked.returncode in (0, 1), checked.stdout
    subprocess.run([str(find("debugfs")), "-R", f"rdump / {folder}", drive], check=True, capture_output=True)
    return folder


def missing(folder: Path, told: Told) -> tuple[set[str], dict[str, int], int]:
    """Of what the machine was told: commands that are not there, journalled boots that are not, careless rows."""
    with closing(sqlite3.connect(power_loss_writer.commands_url(folder).removeprefix("sqlite:///"))) as commands:
        assert commands.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        there = {id for (id,) in commands.execute("SELECT id FROM commands")}
        assert {id for (id,) in commands.execute("SELECT command FROM audit")} == there
    records = Journal(power_loss_writer.journal_path(folder)).records
    with closing(sqlite3.connect(power_loss_writer.careless_path(folder))) as careless:
        kept = careless.execute("SELECT max(number) FROM kept").fetchone()[0] or 0
    boots = {id: boot for id, boot in told.boots.items() if id not in records or records[id].boot < boot}
    return told.commands - there, boots, max(told.careless - kept, 0)


def test_the_power_fails_and_nothing_that_was_answered_is_lost(tmp_path: Path, machine: tuple[Machine, Path]) -> None:
    here, drive = machine
    assert here.hears(b"commands ", BOOT), here.said
    here.lines(0.5)
    chance, told, careless = random.Random(9), Told(), 0
    for loss in range(LOSSES + 1):
        told.hear(here.lines(chance.uniform(*BETWEEN)))
        lost = tmp_path / "lost.raw"
        if loss < LOSSES:
            here.qmp("stop")
            told.hear(here.lines(0))
            shutil.copyfile(drive, lost)
            here.qmp("cont")
        else:
            here.process.kill()
            here.process.wait()
            lost = drive
        commands, boots, forgotten = missing(recovered(lost, tmp_path / "recovered"), told)
        assert not commands, f"loss {loss}"
        assert not boots, f"loss {loss}"
        careless += forgotten
    print(f"{LOSSES + 1} losses: {len(told.commands)} commands and {len(told.boots)} records kept")
    assert len(told.commands) > LOSSES
    assert careless, "what is not waited for was kept too: the power did not fail"
