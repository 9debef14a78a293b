"""Programs that a host starts while libvirt starts an emulator: both fork, and neither may keep the other's child."""

import os
import signal
import subprocess
import sys

import pytest

from tests import ROOT

pytestmark = pytest.mark.guest
STARTS = 16
PROGRAM = f"""
import asyncio, uuid
import uvloop
from pupitre.host.hypervisor.port import Guest
from tests.rigs.hypervisor_backends import SPEC, hypervisor, overlays

URI = "qemu:///embed"
disks = overlays(URI)

async def made():
    desktop = str(uuid.uuid4())
    return Guest(desktop, 1, SPEC, await disks.ensure(desktop, None, None, 1))

async def start(host):
    for _ in range({STARTS} // 4):
        guest = await made()
        await host.ensure_running(guest)
        await host.ensure_gone(guest.desktop)

async def make_disks():
    while True:
        await disks.ensure_gone((await made()).desktop)

async def main():
    host = hypervisor(URI)
    await host.open()
    making = [asyncio.create_task(make_disks()) for _ in range(2)]
    await asyncio.gather(*(start(host) for _ in range(4)))
    for one in making:
        one.cancel()
    await asyncio.wait(making)
    await host.close()

uvloop.install()
asyncio.run(main())
"""


def test_starts_beside_new_disks_never_hang() -> None:
    """With the loop of the real process, whose own way to start a program makes libvirt's child wait for ever."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
