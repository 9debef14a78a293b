"""Commands from their row to their outcome: endpoint, cluster and host over a real broker."""

from pathlib import Path

import pytest

from pupitre.domain.command import CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from pupitre.host.simulated import Behaviour
from tests.cluster_rig import IMAGE, eventually, new_id, room

pytestmark = pytest.mark.anyio


async def test_a_desktop_is_booted_and_destroyed(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        assert boot.desktop in await host.hypervisor.guests()
        assert host.overlays.all() == {boot.desktop}

        destroy = await here.destroy(boot.desktop)
        await here.outcome(destroy, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.GONE)
        assert await host.hypervisor.guests() == {}
        assert host.overlays.all() == set()
        await eventually(lambda: not host.journal.records)
