"""Tens of commands on real QEMU while everything is killed: each desktop is one guest with one disk, or none.

``PUPITRE_SEED=… pytest tests/chaos/test_chaos_guests.py`` does again what a failing run has done.
"""

import asyncio
import os
from pathlib import Path

import pytest

from pupitre.config import Settings
from pupitre.domain.command import CommandState
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.images.store import ImageStore
from pupitre.runtime.clock import now_ms
from pupitre.store.admin import migrate
from pupitre.store.sql.engine import open_database
from pupitre.store.status import CHANGED, Status
from tests.chaos.crowd import Crowd
from tests.chaos.proxied_cluster import ProxiedCluster
from tests.chaos.schedule import draw
from tests.chaos.test_chaos import a_seed, carry_out, story
from tests.rigs.evidence import emulators
from tests.rigs.process_cluster import PATIENCE, prepare_home, settings_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.guest]

HOST = "host-1"
SECONDS, COMMANDS = 25.0, 30
NOTICED_MS = 1000
"""A guest that dies is seen to be dead within this, from when its parent has reaped it.

Before that libvirt takes it for alive: it asks every 0.2 s whether there is such a process, and a zombie is one.
QEMU's parent is the machine's process 1; systemd reaps at once, other programs may take seconds.
"""


def databases(settings: Settings) -> None:
    migrate.upgrade_all(settings)


async def guests_deployment(home: Path, images: ImageStore) -> ProxiedCluster:
    settings, environment = settings_of(
        home,
        hypervisor="qemu:///embed",
        image_store=images.root,
        guests_on_stop="destroy",
        host_timeout=8.0,
        connection_grace=15,
        command_timeout=90,
    )
    await asyncio.to_thread(prepare_home, settings, [HOST], databases)
    deployment = ProxiedCluster(settings, [HOST], environment)
    deployment.image = "tiny"
    await deployment.prepare_home()
    return deployment


async def test_nothing_is_lost_doubled_or_left_over_on_real_guests(tmp_path: Path, images: ImageStore) -> None:
    seed = a_seed()
    print(f"PUPITRE_SEED={seed}")
    schedule = draw(seed, SECONDS, (HOST,), per_second=0.4)
    deployment = await guests_deployment(tmp_path / "home", images)
    try:
        await deployment.start()
        crowd = Crowd(deployment, seed, COMMANDS, SECONDS, patience=(90.0, 90.0, 6.0))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.run())
            tasks.create_task(carry_out(deployment, schedule))
        await crowd.tidy()
        await deployment.outcomes(crowd.given)
        wrong = await deployment.settled()
        assert not wrong, story(seed, schedule, wrong, deployment)
        assert not deployment.ended(), story(seed, schedule, wrong, deployment)
    finally:
        await deployment.close()


async def shown_as(deployment: ProxiedCluster, desktop: str, state: DesktopState) -> Desktop:
    status = Status(open_database(deployment.settings, "portal", "status", read_only=True))
    try:
        async with status.database.listen(CHANGED) as listener, asyncio.timeout(PATIENCE):
            while (seen := await status.desktop(desktop)) is None or seen.state is not state:
                await listener.wait()
            return seen
    finally:
        await status.database.close()


async def test_a_killed_guest_is_noticed_at_once_and_its_disk_is_whole(tmp_path: Path, images: ImageStore) -> None:
    """Fault 5."""
    deployment = await guests_deployment(tmp_path / "home", images)
    try:
        await deployment.start()
        boot = await deployment.outcome(await deployment.boot(timeout=90))
        assert boot.state is CommandState.SUCCEEDED, boot
        assert boot.desktop
        (emulator,) = emulators()[boot.desktop]
        disk = tmp_path / "disk.qcow2"  # another name for it, since it goes with the desktop
        os.link(deployment.settings.home / "hosts" / HOST / "overlays" / f"{boot.desktop}.qcow2", disk)
        killed = now_ms()
        emulator.kill()
        await asyncio.to_thread(emulator.wait, PATIENCE)
        reaped = now_ms()
        seen = await shown_as(deployment, boot.desktop, DesktopState.FAILED)
        print(f"reaped after {reaped - killed} ms, seen after {seen.since - killed} ms")
        assert seen.since - reaped < NOTICED_MS
        assert seen.reason
        # Without the image below it, which lies elsewhere in the host's namespace.
        overlay = f"driver=qcow2,backing=,file.driver=file,file.filename={disk}"
        checked = await asyncio.create_subprocess_exec("qemu-img", "check", "-q", "--image-opts", overlay)
        assert await checked.wait() == 0
        again = await deployment.outcome(await deployment.boot(timeout=90))
        assert again.state is CommandState.SUCCEEDED
        assert not await deployment.settled()
    finally:
        await deployment.close()
