"""The host process in its own mount namespace, as root: real QEMU as a user of its own, and `kill -9`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import ROOT

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root's QEMU runs as another user"),
]


class HostProcess:
    """`host_process.py`, driven line by line. A context manager that leaves no process behind."""

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rigs.host_process"],
            cwd=ROOT,
            env=os.environ
            | {"PUPITRE_HOME": str(home), "PUPITRE_IMAGE_STORE": str(home / "images"), "PUPITRE_HOST_NAME": "h"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.ready = self._read()

    def __enter__(self) -> "HostProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *order: str) -> Any:
        answer = self.try_to(*order)
        assert "answer" in answer, answer
        return answer["answer"]

    def try_to(self, *order: str) -> Any:
        assert self._process.stdin
        self._process.stdin.write(" ".join(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the host process ended"
        return json.loads(line)


@pytest.fixture
def home() -> Iterator[Path]:
    """Of mode 700, as mktemp makes it, and with a long path."""
    with tempfile.TemporaryDirectory(prefix="pupitre-" + "long-" * 12) as folder:
        yield Path(folder)
        for guest in qemus(Path(folder)):
            guest.kill()
            guest.wait(10)


def qemus(home: Path) -> list[psutil.Process]:
    """The emulators whose disk is in this home, whatever they call it: found by what is mounted for them."""
    found = []
    for process in psutil.process_iter(["name"]):
        if (process.info["name"] or "").startswith("qemu-system"):
            try:
                mounts = Path(f"/proc/{process.pid}/mountinfo").read_text()
            except OSError:
                continue
            if str(home) in mounts:
                found.append(process)
    return found


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_guests_run_confined_and_nothing_is_mounted_outside(home: Path) -> None:
    desktop = str(uuid.uuid4())
    with HostProcess(home) as host:
        assert host.ready == {"isolated": True}
        host.ask("start", desktop, "1")
        (qemu,) = qemus(home)
        seen = status(qemu.pid)
        assert set(seen["Uid"].split()).isdisjoint({"0"})
        assert seen["Seccomp"] == "2"
        assert qemu.net_connections(kind="inet") == []
        assert host.ask("greeting", desktop) == "RFB 003.008\n"
        assert str(home) not in Path("/proc/self/mountinfo").read_text()
        host.ask("gone", desktop)
        assert host.ask("disks") == []
    assert qemus(home) == []


def test_a_killed_host_process_finds_its_guests_again(home: Path) -> None:
    old, new = str(uuid.uuid4()), str(uuid.uuid4())
    with HostProcess(home) as host:
        host.ask("start", old, "5")
        os.kill(host.pid, signal.SIGKILL)
    assert len(qemus(home)) == 1
    with HostProcess(home) as host:
        assert host.ask("guests") == {old: [5, "running"]}
        assert host.ask("greeting", old) == "RFB 003.008\n"
        assert host.ask("picture", old) == "PNG"
        host.ask("line", old)
        host.ask("start", old, "5")  # changes nothing
        host.ask("start", new, "1")
        assert host.ask("guests") == {old: [5, "running"], new: [1, "running"]}
        for desktop in (old, new):
            host.ask("gone", desktop)
        assert host.ask("guests") == {}
        assert host.ask("disks") == []
    assert qemus(home) == []


def test_an_emulator_that_is_killed_is_heard_of(home: Path) -> None:
    desktop = str(uuid.uuid4())
    with HostProcess(home) as host:
        host.ask("start", desktop, "2")
        assert host.ask("change") == [desktop, 2, "running", None]
        (qemu,) = qemus(home)
        qemu.kill()
        assert host.ask("change")[:3] == [desktop, 2, "stopped"]
        assert host.ask("guests") == {}
        host.ask("start", desktop, "3")
        host.ask("gone", desktop)


def test_damaged_overlay_fails_and_next_start_works(home: Path) -> None:
    """A damaged overlay fails with its reason and the next start works."""
    damaged, sound = str(uuid.uuid4()), str(uuid.uuid4())
    with HostProcess(home) as host:
        (home / "hosts/h/overlays" / f"{damaged}.qcow2").write_bytes(b"\0" * 4096)
        refused = host.try_to("start", damaged, "1")
        assert refused["error"] == "ImageFault"
        assert "damaged" in refused["reason"]
        host.ask("start", sound, "1")
        assert host.ask("guests") == {sound: [1, "running"]}
        for desktop in (damaged, sound):
            host.ask("gone", desktop)
        assert host.ask("disks") == []
