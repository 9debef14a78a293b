"""Threats 5, 11, 19 and 22 on real guests: what QEMU may do, what its disk holds, what it costs when it hangs."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from lxml import etree

from pupitre.config import Settings
from pupitre.errors import PupitreError, SetupError
from pupitre.host.hypervisor.confinement import require_driver, require_user
from pupitre.host.hypervisor.libvirt_driver import LibvirtHypervisor
from pupitre.host.hypervisor.port import Guest, Hypervisor
from pupitre.host.hypervisor.selection import choose, write_qemu_conf
from tests.rigs.hypervisor_backends import guest, hypervisor, overlays, paths, settings
from tests.unit.host.test_isolation import status

pytestmark = [pytest.mark.anyio, pytest.mark.guest, pytest.mark.timeout(120)]
URI = "qemu:///embed"
PATTERN = b"what-a-student-wrote-into-their-exam"
CAPABILITIES = "<capabilities><host><secmodel><model>{}</model></secmodel></host></capabilities>"


@pytest.fixture
async def host() -> AsyncIterator[Hypervisor]:
    opened = hypervisor(URI)
    await opened.open()
    yield opened
    for desktop in await opened.guests():
        await opened.ensure_gone(desktop)
    await opened.close()
    for desktop in overlays(URI).all():
        await overlays(URI).ensure_gone(desktop)


def emulator(of: Guest) -> psutil.Process:
    def is_its(process: psutil.Process) -> bool:
        # One that has ended and was not reaped yet has no command line.
        return process.info["name"].startswith("qemu-system") and of.desktop in " ".join(process.info["cmdline"] or ())

    (found,) = filter(is_its, psutil.process_iter(["name", "cmdline"]))
    return found


async def test_emulator_has_no_port_and_a_filter(host: Hypervisor) -> None:
    """Threats 5 and 11. That it is not root where a namespace is allowed: `unit/host/test_isolation.py`."""
    wanted = await guest(URI)
    await host.ensure_running(wanted)
    running = emulator(wanted)
    assert running.net_connections(kind="inet") == []
    screens = [str(one.laddr) for one in running.net_connections(kind="unix")]
    assert any(screen.startswith("/") for screen in screens), "the screen is a unix socket"
    assert status(running.pid)["Seccomp"] == "2"
    assert isinstance(host, LibvirtHypervisor)
    description = etree.fromstring((await host._call((await host._find(wanted.desktop)).XMLDesc)).encode())
    assert [graphics.get("port") for graphics in description.iter("graphics")] == [None]
    if os.geteuid() == 0:
        assert [label.get("model") for label in description.iter("seclabel")] == ["dac"]


@pytest.mark.parametrize("driver", ["none", "dac"])
def test_host_without_required_driver_is_refused(driver: str) -> None:
    with pytest.raises(SetupError, match="neither AppArmor nor SELinux"):
        require_driver(CAPABILITIES.format(driver))


@pytest.mark.parametrize("driver", ["apparmor", "selinux"])
def test_host_with_required_driver_is_taken(driver: str) -> None:
    require_driver(CAPABILITIES.format(driver))
    there = paths(URI)
    write_qemu_conf(there, mandatory=True)
    assert "security_require_confined = 1" in (there.embed / "etc/qemu.conf").read_text()
    write_qemu_conf(there)


def test_emulator_as_root_is_refused_where_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, there = settings(URI), paths(URI)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for wanted in ("user", "mandatory"):
        strict = usual.model_copy(update={"require_confinement": wanted})
        with pytest.raises(SetupError, match="would run as root"):
            require_user(strict, there)
        require_user(strict, replace(there, isolated=True))
    require_user(usual, there)


async def test_real_libvirt_says_what_confines(host: Hypervisor) -> None:
    """Refused exactly where the kernel has neither driver."""
    kernel = Path("/sys/kernel/security/lsm")
    active = kernel.read_text() if kernel.exists() else ""
    strict = choose(
        settings(URI).model_copy(update={"require_confinement": "mandatory"}), replace(paths(URI), isolated=True)
    )
    try:
        if "apparmor" in active or "selinux" in active:
            await strict.open()
        else:
            with pytest.raises(SetupError, match="AppArmor"):
                await strict.open()
    finally:
        await strict.close()
        write_qemu_conf(paths(URI))


async def test_new_disk_holds_nothing_of_an_old_one(host: Hypervisor, tmp_path: Path) -> None:
    """Threat 19, for the same desktop and for another, on an empty disk and on an image."""
    base = tmp_path / "base"
    base.write_bytes(os.urandom(1 << 20))
    disks = overlays(URI)
    desktop = str(uuid.uuid4())
    for backing, kind in ((None, None), (base, "raw")):
        old = await disks.ensure(desktop, backing, kind, 1)
        writes = (f"write -s {source(tmp_path)} {at} 4k" for at in range(0, 1 << 20, 1 << 16))
        await run("qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), str(old))
        assert PATTERN in old.read_bytes(), "the pattern was written"
        assert PATTERN in await raw(old)
        await disks.ensure_gone(desktop)
        for owner in (desktop, str(uuid.uuid4())):
            new = await disks.ensure(owner, backing, kind, 1)
            assert PATTERN not in new.read_bytes()
            content = await raw(new)
            assert PATTERN not in content
            assert content[: 1 << 20] == (base.read_bytes() if backing else bytes(1 << 20))
            await disks.ensure_gone(owner)
    assert PATTERN not in base.read_bytes(), "an image is only read"


def source(folder: Path) -> Path:
    path = folder / "pattern"
    path.write_bytes((PATTERN * 200)[:4096])
    return path


async def run(*command: str) -> None:
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


async def raw(disk: Path) -> bytes:
    """The first mebibyte as a guest reads it."""
    copy = disk.with_name(disk.name + ".raw")
    await run("qemu-img", "dd", "-U", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1", f"if={disk}", f"of={copy}")
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()


async def test_frozen_emulator_delays_no_other_and_is_removed(host: Hypervisor) -> None:
    """Threat 22: libvirt is in the host's own process, and waits for a monitor that does not answer."""
    frozen, other = await guest(URI), await guest(URI)
    await host.ensure_running(frozen)
    stopped = emulator(frozen)
    stopped.send_signal(signal.SIGSTOP)
    asking = [asyncio.create_task(host.shut_down(frozen.desktop)), asyncio.create_task(host.screenshot(frozen.desktop))]
    try:
        async with asyncio.timeout(60):
            await host.ensure_running(other)
            assert set(await host.guests()) == {frozen.desktop, other.desktop}
            with await host.console(other.desktop):
                pass
            await host.ensure_gone(other.desktop)
            await host.ensure_gone(frozen.desktop)
            assert await host.guests() == {}
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped.send_signal(signal.SIGCONT)
        answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(answer is None or isinstance(answer, PupitreError | bytes) for answer in answers), answers
    await asyncio.to_thread(stopped.wait, 10)


HOSTILE = (
    "<domain", "<domain type='kvm'/>", "<!DOCTYPE d [<!ENTITY a '" + "b" * 4096 + "'>]><domain>&a;</domain>",
    "<domain type='qemu'><name>" + "x" * 100_000 + "</name></domain>", "\0", "<a>" * 20_000,
    "<domain type='qemu'><memory>-1</memory><vcpu>99999999999999999999</vcpu><name>a/../b</name></domain>",
)  # fmt: skip
FUZZ = """
import json, sys, threading, libvirt
libvirt.virEventRegisterDefaultImpl()
threading.Thread(target=lambda: [libvirt.virEventRunDefaultImpl() for _ in iter(int, 1)], daemon=True).start()
connection = libvirt.open(sys.argv[1])
libvirt.registerErrorHandler(lambda *_: None, None)
answers = []
for text in json.load(sys.stdin):
    try:
        connection.createXML(text, libvirt.VIR_DOMAIN_START_VALIDATE)
        answers.append("started")
    except (libvirt.libvirtError, ValueError) as error:
        answers.append("refused")
print(json.dumps([answers, len(connection.listAllDomains(0))]))
"""


def test_libvirt_outlives_hostile_documents(tmp_path: Path) -> None:
    """Threat 22: none of them starts a guest, none ends the process that libvirt is part of."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, f"qemu:///embed?root={tmp_path}"],
        input=json.dumps(HOSTILE), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["refused"] * len(HOSTILE), 0]


def test_policy_is_a_setting() -> None:
    assert Settings(require_confinement="mandatory").require_confinement == "mandatory"
    with pytest.raises(ValueError, match="require_confinement"):
        Settings.model_validate({"require_confinement": "perhaps"})
