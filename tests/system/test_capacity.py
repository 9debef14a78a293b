"""What guests take of their host: they come after what controls them, have a ceiling, and wait while a disk is full."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pupitre.host.hypervisor.guest_process import NICENESS, OOM_SCORE, ROOM_MIB
from pupitre.images.store import ImageStore
from tests.rigs.rest_client import Person, Serial, emulators, person
from tests.rigs.stack import Stack

DISK_MIB = 900


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the desktops' disks. It needs root, as CI has it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=711", "pupitre-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path, left_mib: int) -> Path:
    filler = folder / "filler"
    free = os.statvfs(folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (left_mib << 20))
    return filler


def warnings(stack: Stack) -> set[str]:
    with person(stack.url, "admin", stack.password("admin")) as admin:
        (host,) = admin.http.get("/hosts").json()["items"]
        return {warning["code"] for warning in host["warnings"]}


def written(line: Serial) -> str:
    """The digest of what the guest wrote, read from its disk anew."""
    line.say("sync; echo 3 > /proc/sys/vm/drop_caches; cat /home/data | md5sum\n")
    return line.hear(r"([0-9a-f]{32})  -", 120)[1]


def reason(someone: Person, desktop: str) -> str | None:
    seen = someone.http.get(f"/desktops/{desktop}").json()
    assert seen["state"] == "running"
    told: str | None = seen["reason"]
    return told


def test_guest_that_meets_a_full_disk_waits_and_goes_on(small_disk: Path, images: ImageStore, tmp_path: Path) -> None:
    """What it writes meanwhile is neither refused to it nor lost."""
    overlays = tmp_path / "home/hosts/host-1/overlays"
    overlays.parent.mkdir(parents=True)
    overlays.symlink_to(small_disk)
    stack = Stack(tmp_path / "home").start()
    try:
        with person(stack.url, "teacher", stack.password("teacher")) as teacher:
            desktop = teacher.start()
            filler = fill(small_disk, 24)
            stack.wait_until("the host warns", lambda: "disk_full" in warnings(stack))
            with Serial(stack.home, desktop) as line:
                line.wait_for_shell()
                line.say("dd if=/dev/urandom of=/tmp/data bs=1M count=32 2>/dev/null; md5sum /tmp/data\n")
                line.hear(r"([0-9a-f]{32})  /tmp/data", 120)
                line.say("cat /tmp/data /tmp/data /tmp/data | md5sum\n")
                meant = line.hear(r"([0-9a-f]{32})  -", 120)[1]
                line.say(
                    "cat /tmp/data /tmp/data /tmp/data | dd of=/home/data bs=1M conv=fsync iflag=fullblock 2>/dev/null;"
                    " echo ended-$?\n"
                )
                stack.wait_until(
                    "it waits, and says why", lambda: re.match(r"Paused: the disk", reason(teacher, desktop) or "")
                )
                refused = teacher.outcome(teacher.order("POST", "/desktops", json={"image": "tiny"})["command"])
                assert "of disk short" in refused["error"]["reason"]
                filler.unlink()
                line.hear(r"ended-0", 120)
                assert written(line) == meant
                stack.wait_until("it runs as ever", lambda: reason(teacher, desktop) is None)
            stack.wait_until("the warning is gone", lambda: "disk_full" not in warnings(stack))
            file = {"driver": "file", "filename": str(small_disk / f"{desktop}.qcow2")}
            alone = json.dumps(
                {"driver": "qcow2", "backing": None, "file": file}
            )  # its image is known to the host alone
            check = ["qemu-img", "check", "-q", "-U", f"json:{alone}"]
            assert subprocess.run(check, check=False).returncode in {0, 3}, "3: leaked clusters, of writes under way"
    finally:
        stack.stop()


@pytest.mark.xdist_group("stack")
def test_guest_comes_after_the_processes_that_control_it(stack: Stack) -> None:
    with person(stack.url, "teacher", stack.password("teacher")) as teacher:
        (emulator,) = emulators(teacher.start())
        score = Path(f"/proc/{emulator.pid}/oom_score_adj")
        stack.wait_until("it is put behind", lambda: score.read_text().strip() == str(OOM_SCORE))
        stack.wait_until("each thread is", lambda: _is_nice(emulator))
        ceiling = str((160 + ROOM_MIB) << 20)
        limits = Path(f"/proc/{emulator.pid}/limits")
        stack.wait_until(
            "it has a ceiling", lambda: re.search(rf"Max data size +{ceiling} +{ceiling}", limits.read_text())
        )
        control = psutil.Process(stack.pid("host"))
        assert control.nice() == 0
        assert int(Path(f"/proc/{control.pid}/oom_score_adj").read_text()) < OOM_SCORE

    def is_measured() -> bool:
        with person(stack.url, "admin", stack.password("admin")) as admin:
            (host,) = admin.http.get("/hosts").json()["items"]
            return int(host["facts"]["guests_mib"]) > 100

    with person(stack.url, "teacher", stack.password("teacher")) as teacher:
        teacher.start()
        stack.wait_until("the host says what its guests take", is_measured)
    said = stack.pupitre("doctor", check=False).stdout
    assert "guests' limits" in said


def _is_nice(emulator: psutil.Process) -> bool:
    threads = os.listdir(f"/proc/{emulator.pid}/task")
    return all(os.getpriority(os.PRIO_PROCESS, int(thread)) == NICENESS for thread in threads)
