"""Databases restored from a backup: the cluster waits for an administrator, and no guest ends meanwhile or after."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pupitre.config import DatabaseName
from pupitre.domain.command import Command, CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.errors import SetupError
from pupitre.pki import issuing
from pupitre.pki.signing import ORDER_KEY
from pupitre.runtime.clock import now_ms
from pupitre.scheduler.commands import SUSPENDED
from pupitre.scheduler.restore import WAITS
from pupitre.store.audit import AuditLog
from pupitre.store.cluster import ClusterStore
from pupitre.store.sql.engine import open_database
from tests.rigs.local_cluster import IMAGE, LocalCluster, eventually, local_cluster

pytestmark = pytest.mark.anyio


def path_of(here: LocalCluster, name: DatabaseName) -> Path:
    return Path(here.settings.database_url(name).split("///", 1)[1])


def back_up(here: LocalCluster, name: DatabaseName, to: Path) -> None:
    with closing(sqlite3.connect(path_of(here, name))) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def restore(here: LocalCluster, name: DatabaseName, kept: Path) -> None:
    path = path_of(here, name)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(kept, path)


async def guests(here: LocalCluster) -> set[str]:
    return set(await here.hosts[0].hypervisor.guests())


async def confirm(here: LocalCluster) -> list[str]:
    store = ClusterStore(open_database(here.settings, "cluster", "cluster"))
    try:
        return await store.confirm(now=now_ms())
    finally:
        await store.close()


async def is_refused(here: LocalCluster, command: Command) -> None:
    refused = await here.outcome(command, CommandState.FAILED)
    assert refused.fault is not None
    assert refused.fault.reason == SUSPENDED


@pytest.mark.parametrize("hot", [False, True], ids=["while it was stopped", "while it ran"])
async def test_a_restored_cluster_waits_for_an_administrator(tmp_path: Path, hot: bool) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        old, doomed = await here.running(), await here.running()
        await here.stop("cluster")
        if hot:  # the epoch of the backup is the one in which it goes on
            await here.start_cluster()
            await here.outcome(await here.destroy((await here.running()).desktop), CommandState.SUCCEEDED)
        back_up(here, "cluster", tmp_path / "backup")
        if not hot:
            await here.start_cluster()
        new = await here.running()
        await here.outcome(await here.destroy(doomed.desktop), CommandState.SUCCEEDED)
        await here.stop("cluster")
        there = await guests(here)
        assert there == {old.desktop, new.desktop}

        restore(here, "cluster", tmp_path / "backup")
        await here.start_cluster()
        seen = await here.desktop_where(doomed, lambda desktop: desktop.state is DesktopState.LOST)
        assert seen.reason == WAITS
        await eventually(lambda: host_says(here, WAITS))
        await is_refused(here, await here.boot())
        await is_refused(here, await here.destroy(old.desktop))
        await here.stop("cluster")  # and a start makes it no wiser
        await here.start_cluster()
        await is_refused(here, await here.boot())
        assert await guests(here) == there

        assert await confirm(here) == ["host-1"]
        await here.wait_desktop(doomed, DesktopState.GONE)
        adopted = await here.wait_desktop(new, DesktopState.RUNNING)
        assert (adopted.owner, adopted.image, adopted.boot) == (new.user, IMAGE, 1)
        await eventually(lambda: host_says(here, None))
        assert await guests(here) == there
        await here.outcome(await here.destroy(new.desktop), CommandState.SUCCEEDED)
        later = await here.running()
        assert await guests(here) == {old.desktop, later.desktop}
        await here.stop("cluster")
        await here.start_cluster()
        await here.running()  # and it is over
        await eventually(lambda: is_noted(here))


async def is_noted(here: LocalCluster) -> bool:
    actions = {entry.action for entry in await AuditLog(here.commands.database).search()}
    return actions >= {"database_restored", "restored_confirmed", "guest_adopted", "desktop_ended"}


async def host_says(here: LocalCluster, reason: str | None) -> bool:
    host = await here.status.host("host-1")
    return host is not None and host.reason == reason


async def test_restored_commands_have_their_first_outcomes_again(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        await here.stop("cluster")
        booted = await here.boot()
        await here.stop("endpoint")
        back_up(here, "commands", tmp_path / "backup")
        await here.start_cluster()
        await here.start_endpoint()
        await here.outcome(booted, CommandState.SUCCEEDED)
        await here.outcome(await here.destroy(booted.desktop), CommandState.SUCCEEDED)
        await here.stop("endpoint")

        await here.commands.database.close()
        restore(here, "commands", tmp_path / "backup")
        await here.start_endpoint()
        await here.outcome(booted, CommandState.SUCCEEDED)
        assert await guests(here) == set()  # it was not begun a second time


async def test_missing_order_key_is_never_replaced_unasked(tmp_path: Path) -> None:
    """Not by a cluster server that finds none, nor by a second one that was never given the first one's."""
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        boot = await here.running()
        key = issuing.directory(here.settings, "cluster") / ORDER_KEY
        kept = shutil.copy(key, tmp_path / "kept")
        await here.stop("cluster")
        key.unlink()
        for _ in range(2):  # the key that the first try made is no better at the second
            await here.start_cluster()
            with pytest.raises(SetupError, match="pupitre pki init --new-order-key"):
                await here.ended("cluster")
        shutil.copy(kept, key)
        await here.start_cluster()
        second = await here.running()
        await here.stop("cluster")

        key.unlink()
        words = [sys.executable, "-m", "pupitre", "pki", "init", "--new-order-key"]
        environment = os.environ | {"PUPITRE_HOME": str(here.settings.home)}
        done = await asyncio.to_thread(subprocess.run, words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert key.read_bytes() != Path(kept).read_bytes()
        await here.start_cluster()
        third = await here.running()
        assert await guests(here) == {boot.desktop, second.desktop, third.desktop}
