"""Bad days of the whole program: each is a failed command with its reason, and the next command works."""

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pycdlib
import pytest

from pupitre.images.store import ImageStore
from tests.rigs.rest_client import Person, Serial, overlay, person
from tests.rigs.stack import Stack

BOOT_SECTOR = (
    bytes.fromhex("31c08ed8fcbe227cac84c0740c50b40ecd1058baf803eeebeffbb91200f4e2fdebe3") + b"own disk here\r\n\0"
)
"""Says "own disk here" on screen and serial line once a second, by the BIOS alone."""


@pytest.fixture
def teacher(stack: Stack) -> Iterator[Person]:
    with person(stack.url, "teacher", stack.password("teacher")) as someone:
        yield someone


def raw_disk(path: Path) -> Path:
    path.write_bytes((BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa").ljust(2 << 20, b"\0"))
    return path


def qcow2_disk(path: Path) -> Path:
    raw = raw_disk(path.with_suffix(".img"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


def iso_disk(path: Path) -> Path:
    iso = pycdlib.PyCdlib()
    iso.new()
    program = BOOT_SECTOR.ljust(2048, b"\0")
    iso.add_fp(io.BytesIO(program), len(program), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1")
    iso.write(str(path))
    iso.close()
    return path


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize("kind", ["raw", "qcow2", "iso"])
def test_an_imported_computer_starts(stack: Stack, teacher: Person, tmp_path: Path, kind: str) -> None:
    name = f"own-{kind}-{os.getpid()}"
    file = {"raw": raw_disk, "qcow2": qcow2_disk, "iso": iso_disk}[kind](tmp_path / f"{name}.{kind}")
    imported = stack.pupitre("image", "import", str(file), "--format", kind, "--memory", "64", "--vcpus", "1", "--json")
    assert imported.returncode == 0, imported.stdout
    try:
        for event, image in teacher.events(30):
            if event == "image" and image["id"] == name and image["state"] == "ready":
                break
        desktop = teacher.start(name)
        with Serial(stack.home, desktop) as line:
            line.hear("own disk here")
        teacher.stop(desktop)
    finally:
        stack.pupitre("image", "remove", name)


@pytest.mark.xdist_group("stack")
def test_a_file_that_refers_to_another_is_refused(stack: Stack, tmp_path: Path) -> None:
    secret = tmp_path / "secret.img"
    secret.write_bytes(b"canary" * 100_000)
    hostile = tmp_path / "hostile.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", hostile], check=True)
    answer = stack.pupitre("image", "import", str(hostile), check=False)
    assert answer.returncode == 1
    assert "another file" in answer.stderr or "backing" in answer.stderr
    assert "hostile" not in stack.pupitre("image", "list", "--json").stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 MiB of its own. It needs root, as CI has it; an ordinary user cannot mount one."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m,mode=711", "pupitre-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def wait_for_disk(stack: Stack, enough: Callable[[int], bool]) -> None:
    """Until the host has told what it has free (MiB)."""
    with person(stack.url, "admin", stack.password("admin")) as admin, closing(admin.events(60)) as events:
        told = (host["facts"]["disk_free_mib"] for kind, host in events if kind == "host")
        assert any(enough(free) for free in told)


def test_a_full_disk_fails_a_start_and_no_more(small_disk: Path, images: ImageStore) -> None:
    stack = Stack(small_disk / "home").start()
    try:
        with person(stack.url, "teacher", stack.password("teacher")) as teacher:
            running = teacher.start()
            filler = small_disk / "filler"
            free = os.statvfs(small_disk)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, (free.f_bavail - 2048) * free.f_frsize)
            wait_for_disk(stack, lambda free: free < 512)
            ended = teacher.outcome(teacher.order("POST", "/desktops", json={"image": "tiny"})["command"])
            assert (ended["state"], ended["error"]["code"]) == ("failed", "VM_BOOT_FAILURE")
            assert "of disk short" in ended["error"]["reason"]
            filler.unlink()
            wait_for_disk(stack, lambda free: free > 512)
            with Serial(stack.home, running) as line:
                line.wait_for_shell()
            teacher.stop(teacher.start())
            assert [path.name for path in overlay(stack.home, running).parent.iterdir()] == [f"{running}.qcow2"]
    finally:
        stack.stop()
