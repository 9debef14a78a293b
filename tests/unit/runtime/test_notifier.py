"""The bell between processes: no ring is lost while someone listens, and ringing never fails."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.runtime.notifier import Bell

pytestmark = pytest.mark.anyio


async def test_every_listener_hears(tmp_path: Path) -> None:
    bell = Bell(tmp_path, "topic")
    async with bell.listen() as one, bell.listen() as two:
        bell.ring()
        await asyncio.wait_for(asyncio.gather(one.heard(), two.heard()), 5)


async def test_another_process_rings(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from pupitre.runtime.notifier import Bell;Bell(pathlib.Path(sys.argv[1]), 'topic').ring()"
    )
    async with Bell(tmp_path, "topic").listen() as listener:
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path)], check=True)
        await asyncio.wait_for(listener.heard(), 5)


async def test_a_ring_before_waiting_is_not_lost_and_many_are_one(tmp_path: Path) -> None:
    bell = Bell(tmp_path, "topic")
    async with bell.listen() as listener:
        for _ in range(1000):  # more than any queue holds
            bell.ring()
        await asyncio.wait_for(listener.heard(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listener.heard(), 0.05)
        bell.ring()
        await asyncio.wait_for(listener.heard(), 5)


async def test_every_change_is_seen_by_who_looks_after_each_ring(tmp_path: Path) -> None:
    bell, level = Bell(tmp_path, "topic"), 0

    async def reader() -> None:
        async with bell.listen() as listener:
            ready.set()
            while level < 500:
                await listener.heard()

    ready = asyncio.Event()
    task = asyncio.create_task(reader())
    await ready.wait()
    for _ in range(500):
        level += 1
        bell.ring()
        if level % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(task, 5)


async def test_nobody_listens(tmp_path: Path) -> None:
    Bell(tmp_path, "topic").ring()
    Bell(tmp_path / "not" / "there", "topic").ring()


async def test_what_a_killed_listener_left_is_swept(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, pathlib, sys; from pupitre.runtime.notifier import Bell\n"
        "async def main():\n"
        "    async with Bell(pathlib.Path(sys.argv[1]), 'topic').listen(): os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path)], check=False)
    assert len(list((tmp_path / "topic").iterdir())) == 1
    Bell(tmp_path, "topic").ring()
    assert list((tmp_path / "topic").iterdir()) == []


async def test_a_folder_deeper_than_a_socket_address_may_be(tmp_path: Path) -> None:
    bell = Bell(tmp_path / ("d" * 100) / ("e" * 100), "topic")
    async with bell.listen() as listener:
        bell.ring()
        await asyncio.wait_for(listener.heard(), 5)
    assert list(bell.folder.iterdir()) == []


async def test_what_is_no_socket_does_not_keep_others_from_hearing(tmp_path: Path) -> None:
    bell = Bell(tmp_path, "topic")
    async with bell.listen() as listener:
        (bell.folder / "a-file").write_text("")
        (bell.folder / "a-folder").mkdir()
        bell.ring()
        await asyncio.wait_for(listener.heard(), 5)
